"""Training below 8 bits: fake quantization in the formats that are stored, and what learns through it."""
