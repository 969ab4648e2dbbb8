"""The same arithmetic in PyTorch, to be measured against; needs `pip install jaxpoison[bench]`."""
