def write(workdir, results):
  pass
