"""A trained network as files for other programs.

ONNX and StableHLO models take pixels as they are, white on black, uint8 [batch, 32, 32, channels],
and return float32 logits [batch, classes]: those of `epoch.predict`. The mean and the standard
deviation of the training pixels are inside, so that no user can normalise differently. In every
signature here, `mean` and `std` are as a `Split` has them.
"""
