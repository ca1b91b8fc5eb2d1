"""Where 5.x kept the functions for released SAEs; their home is `sae_lens.loading`."""
