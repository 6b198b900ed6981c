"""Secrets in addresses and on the command line: known to the job that needs them, and in no file that is written.

`hide` masks those of the configuration before anything reads it, so that params, records, logs, W&B and the report have
masks; `reveal` gives a job the address back. `mask` is for text from elsewhere: a library's error, a command line.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import unquote

VARIABLE = "ICPROBE_SECRETS"  # set by the Snakefile: {masked address: address}
MASK = "***"
# Names of what is secret: of parameters of an address, of options, of keys.
SECRET = re.compile(
    r"token(?!s|iz)|secret|passw|passphrase|pwd|(?:api|access|private|account|subscription)[-_]?key|signature|credential"
    r"|authoriz|[-_]auth$",
    re.IGNORECASE,
)
SHORT = {"key", "sig", "auth", "code", "jwt", "pass", "pw"}  # the same, as whole names of an address's parameters
# Within a text. A password may hold quotes, so that what stands before an @ ends at white space alone.
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://(?:[^\s/?#@]*:[^\s@]*@)?[^\s\"'<>]+", re.IGNORECASE)
WHOLE = re.compile(r"\s*[a-z][a-z0-9+.-]*://\S+\s*", re.IGNORECASE)  # a text that is one: a password may hold quotes
# Up to the last @ before the path; a password may hold a slash, which a port cannot.
USER = re.compile(r"(?<=://)(?:[^\s/?#]*@|[^\s/@:]+:(?!\d+(?:[/?#]|$))[^\s@]*@)")
PARAMETER = re.compile(r"(?<=[?&;#])([^=&;#]+)=([^&;#]+)")
ASSIGNED = re.compile(r"([\w.-]+)([\"']?\s*[=:]\s*[\"']?)([^\s\"',}\]]+)")
HEADER = re.compile(
    r"(authorization[\"']?\s*[=:]\s*[\"']?(?:bearer |basic |token )?|x-api-key[\"']?\s*[=:]\s*[\"']?)[^\s\"',}\]]+",
    re.IGNORECASE,
)
# In a command: a name that ends as secrets' do, and what it is given. (`--api-key-file` is given a file.)
GIVEN = re.compile(
    r"(?<![^\s=\"'])(-{0,2}[\w.-]*(?:token|secret|passw(?:or)?d|passphrase|pwd|(?:api|access|private|account)[-_]?key"
    r"|credentials?|[-_]auth))(=|\s+)([^\s-]\S*)",
    re.IGNORECASE,
)
HARMLESS = re.compile(r"\$.*|[\d.]+|true|false|none", re.IGNORECASE)
# A shorter value may stand in any text by chance.
LEAST_CHARACTERS, LEAST_OF_VARIABLE = 4, 8
_kept: set[str] = set()


def mask(text: str) -> str:
    """`text` without the secrets of its addresses, without authorization headers, and without known secrets.

    Known are those of the configuration's addresses and the values of environment variables with such names.
    """
    for secret in _known():
        text = text.replace(secret, MASK)
    return HEADER.sub(rf"\1{MASK}", ADDRESS.sub(lambda found: _masked_address(found[0]), text))


def keep_secret(value: str) -> str:
    """`value`, which `mask` knows from now on, in this process."""
    if len(value) >= LEAST_CHARACTERS:
        _kept.add(value)
    return value


def masked(value: Any) -> Any:
    """Nested plain values, each text masked; a text under a secret's name wholly."""
    if isinstance(value, dict):
        return {
            name: MASK if isinstance(inner, str) and inner and SECRET.search(str(name)) else masked(inner)
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [masked(inner) for inner in value]
    return mask(value) if isinstance(value, str) else value


def command(words: Sequence[str]) -> str:
    """A command line as one text: masked, and the values of options and settings that have a secret's name."""

    def assigned(found: re.Match[str]) -> str:
        return f"{found[1]}{found[2]}{MASK if SECRET.search(found[1]) else found[3]}"

    shown, after_secret = [], False
    for word in words:
        shown.append(MASK if after_secret else ASSIGNED.sub(assigned, mask(word)))
        after_secret = word.startswith("-") and "=" not in word and SECRET.search(word) is not None
    return " ".join(shown)


def secret_in(words: Sequence[str]) -> str | None:
    """The first option, setting or header of a command with a secret's name and a value; None without.

    Words may hold commands of their own. What is a number or true, or stands for a variable ($KEY), is no secret.
    """
    text = " ".join(words)
    for found in GIVEN.finditer(text):
        name, sign, value = found.groups()
        if (sign == "=" or name.startswith("-")) and not HARMLESS.fullmatch(value.strip("\"'")):
            return name
    return "a header" if HEADER.search(text) else None


def of_record(record: logging.LogRecord) -> bool:
    """A filter for Snakemake's logger, which tells the command line and why jobs run."""
    if hasattr(record, "cmd"):
        record.cmd = command(sys.argv)
    for name in ("msg", "reason"):
        if isinstance(text := getattr(record, name, None), str):
            setattr(record, name, mask(text))
    return True


# --- the configuration ------------------------------------------------------------------------------------------


def hide(config: dict[str, Any]) -> dict[str, str]:
    """Masks the secrets in a raw configuration's addresses, in place; returns {what stands there now: the address}.

    Addresses that differ in their secrets alone get different masks.
    """
    hidden: dict[str, str] = {}
    waiting: list[Any] = [config]
    seen: set[int] = set()
    while waiting:
        section = waiting.pop()
        # YAML's aliases: a section may stand in many places, and within itself.
        if id(section) in seen:
            continue
        seen.add(id(section))
        for key, value in [*section.items()] if isinstance(section, dict) else [*enumerate(section)]:
            if isinstance(value, dict | list):
                waiting.append(value)
            elif isinstance(value, str) and WHOLE.fullmatch(value):
                shown = _masked_address(value)
                if shown != value:
                    number, base = 1, shown
                    while hidden.get(shown, value) != value:
                        number += 1
                        shown = base.replace(MASK, f"{MASK}{number}")
                    hidden[shown] = value
                    section[key] = shown
    return hidden


def reveal(address: str) -> str:
    """The address that a masked one of the configuration stands for; any other as it is."""
    return _hidden().get(address, address)


def _hidden() -> dict[str, str]:
    return json.loads(os.environ.get(VARIABLE) or "{}")


def _masked_address(address: str) -> str:
    def parameter(found: re.Match[str]) -> str:
        name = unquote(found[1])
        return f"{found[1]}={MASK}" if SECRET.search(name) or name.lower() in SHORT else found[0]

    return PARAMETER.sub(parameter, USER.sub(f"{MASK}@", address))


def _known() -> list[str]:
    """Secrets that are known word for word, the longest first."""
    found = _kept | {secret for address in _hidden().values() for secret in _secrets_of(address)}
    for name, value in os.environ.items():
        if re.search(r"(?:_KEY|TOKEN|SECRET|PASSWORD)$", name, re.IGNORECASE) and len(value) >= LEAST_OF_VARIABLE:
            found.add(value)
    return sorted(found, key=len, reverse=True)


def _secrets_of(address: str) -> Iterator[str]:
    """Password and secret parameters of an address, as they stand there and decoded."""
    shown = _masked_address(address)
    user = USER.search(address)
    values = [user[0][:-1], user[0][:-1].partition(":")[2]] if user else []
    values += [value for name, value in PARAMETER.findall(address) if f"{name}={MASK}" in shown]
    for value in values:
        yield from (form for form in {value, unquote(value)} if len(form) >= LEAST_CHARACTERS)
