"""What pyproject.toml cannot say: configs/ is installed with the package.

It becomes exprl_jax/configs, so that --config=tiny works without a checkout.
"""

import pathlib

import setuptools

folders = {
    '.'.join(['exprl_jax', *path.parts]): str(path) for path in [
        pathlib.Path('configs'), *filter(pathlib.Path.is_dir,
                                         pathlib.Path('configs').iterdir())
    ] if path.name != '__pycache__'
}
setuptools.setup(
    packages=[*setuptools.find_packages(include=['exprl_jax*']), *folders],
    package_dir=folders)
