"""Side-by-side measurements of icprobe's engines, their peers and the machine's own limits; `make bench` runs them."""
