"""Paths in a config: files, gs://, assets of the package, workdirs."""

from etils import epath

ASSETS = epath.Path(__file__).parents[1] / 'assets'


def resolve(path: str) -> epath.Path:
  """asset:NAME is a folder or file that ships with the package.

  A workdir stands for the model that its run has written. A path may be on
  gs://.
  """
  if path.startswith('asset:'):
    return ASSETS / path.removeprefix('asset:')
  folder = epath.Path(path)
  model = folder / 'model'
  return model if (model / 'config.json').is_file() else folder
