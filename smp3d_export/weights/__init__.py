"""Files of trained weights: read without running code from them, named by what they hold."""
