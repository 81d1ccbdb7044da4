"""What the optimizers share: noise, perturbation, fused kernels, shards, ranks, optimizers inside others."""
