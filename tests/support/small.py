"""A network that exports in seconds: a small Unet with three encoder stages."""

SMALL = ("unet", "resnet18", "--encoder-depth", "3", "--decoder-channels", "16,8,8", "--shape", "1,1,32,24,16")
