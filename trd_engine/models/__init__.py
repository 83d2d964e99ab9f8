"""Models: load, wrap with LoRA, divide with FSDP2, and read the output head."""
