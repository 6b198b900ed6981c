"""Random models whose predictions depend on what comes before: a small random model's are nearly uniform."""

import torch
import transformers


def loud_model(kind, **fields):
    """A model of a type, in float32 and evaluation mode, its matrices drawn with a spread that suits their width."""
    config = transformers.AutoConfig.for_model(kind, **fields)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, (0.6 / parameter.shape[-1]) ** 0.5)
    model.tie_weights()
    return model
