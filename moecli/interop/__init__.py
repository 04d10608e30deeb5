"""Models from elsewhere, and for elsewhere: dense runs made into mixtures."""
