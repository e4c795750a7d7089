"""For tools that still look for setup.py: pyproject.toml has everything."""

import setuptools

setuptools.setup()
