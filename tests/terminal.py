"""Runs a command in a terminal of a given width and takes down what it shows.

  python -m tests.terminal COLUMNS COMMAND ...

prints each different screen.
"""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios

import pyte

LINES = 40


def capture(columns, command, env=None, timeout=600):
  """Screens of a command, as lists of lines, and its exit code.

  A screen is taken when the command was silent for a tenth of a second.
  """
  screen = pyte.HistoryScreen(columns, LINES, history=10000)
  stream, screens = pyte.ByteStream(screen), []
  ours, theirs = pty.openpty()
  fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('4H', LINES, columns, 0,
                                                      0))
  child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs,
                           env=env, close_fds=True)
  os.close(theirs)
  while True:
    ready, _, _ = select.select([ours], [], [], 0.1)
    try:
      data = os.read(ours, 65536) if ready else b''
    except OSError:  # the other end is closed
      break
    if data:
      stream.feed(data)
    shown = [line.rstrip() for line in screen.display]
    while shown and not shown[-1]:
      shown.pop()
    if not data and shown and (not screens or screens[-1] != shown):
      screens.append(shown)
    if ready and not data:
      break
  os.close(ours)
  final = [line.rstrip() for line in screen.display]
  scrolled = [
      ''.join(line[x].data
              for x in range(columns)).rstrip()
      for line in screen.history.top
  ]
  screens.append(scrolled + final)
  return screens, child.wait(timeout)


if __name__ == '__main__':
  for number, lines in enumerate(
      capture(int(sys.argv[1]), sys.argv[2:])[0], start=1):
    print(f'--- {number}', *lines, sep='\n')
