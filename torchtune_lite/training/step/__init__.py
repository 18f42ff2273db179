"""One optimizer step: losses, noise, gradients, and the checks of each."""
