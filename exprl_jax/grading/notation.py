r"""One notation for the many in which models and data sets write a formula.

Unicode signs, spaces, fonts and the notation of programs (`sqrt(2)`, `1e6`)
become plain LaTeX, before texts are compared or Math-Verify reads them.
"""

from collections.abc import Callable
import functools
import re
import unicodedata

from exprl_jax.grading import numerals

LONGEST = 4000  # characters; longer formulas stay as they are
_DEEPEST = 8  # calls in each other

_SIGNS = {
    '−': '-', '–': '-', '—': '-', '‐': '-', '‑': '-', '‒': '-', '﹣': '-',
    '×': r'\times ', '⋅': r'\cdot ', '·': r'\cdot ', '∙': r'\cdot ', '÷': '/',
    '⁄': '/', '∕': '/', '∞': r'\infty ', '≤': r'\le ', '≥': r'\ge ',
    '⩽': r'\le ', '⩾': r'\ge ', '≠': r'\ne ', '≈': r'\approx ',
    '≡': r'\equiv ', '±': r'\pm ', '∓': r'\mp ', '∈': r'\in ', '∪': r'\cup ',
    '∩': r'\cap ', '∅': r'\emptyset ', '⌀': r'\emptyset ', '→': r'\rightarrow ',
    '←': r'\leftarrow ', '⇒': r'\Rightarrow ', '⇔': r'\Leftrightarrow ',
    '↔': r'\leftrightarrow ', '°': r'^\circ ', 'º': r'^\circ ', '′': "'",
    '’': "'", '‘': "'", '″': "''", '‴': "'''", '…': r'\ldots ', '⋯': r'\ldots ',
    'ℝ': r'\mathbb{R}', 'ℤ': r'\mathbb{Z}', 'ℚ': r'\mathbb{Q}',
    'ℕ': r'\mathbb{N}', 'ℂ': r'\mathbb{C}', '⌊': r'\lfloor ', '⌋': r'\rfloor ',
    '⌈': r'\lceil ', '⌉': r'\rceil ', '∠': r'\angle ', '∛': r'\sqrt[3]',
    '∜': r'\sqrt[4]', '√': r'\sqrt', '“': '"', '”': '"', '⟨': r'\langle ',
    '⟩': r'\rangle ', '∨': r'\lor ', '∧': r'\land ', '∑': r'\sum ',
    '∫': r'\int ', '²': '^{2}', '\u200b': '', '\u200c': '', '\u200d': '',
    '\u2060': '', '\ufeff': '', '\u2061': '', '\u2062': ''
}  # yapf: disable
_GREEK = (
    'alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu '
    'xi omicron pi rho ? sigma tau upsilon phi chi psi omega').split()
_SIGNS |= {chr(0x3b1 + i): rf'\{n} ' for i, n in enumerate(_GREEK) if n != '?'}
_SIGNS |= {
    c: rf'\{n} ' for c, n in zip(
        'ΓΔΘΛΞΠΣΦΨΩ',
        'Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega'.split())
}
_RAISED = dict(zip('⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ⁽⁾', '0123456789+-ni()'))
_LOWERED = dict(zip('₀₁₂₃₄₅₆₇₈₉₊₋ₙ', '0123456789+-n'))
_VULGAR = re.compile('[¼½¾⅐-⅞]')

# Left and right of thin spaces, digits may belong to one number.
_THIN = re.compile(
    r' ?(?:(?<!\\)\\[,;:> ]|~|\\(?:thinspace|enspace|space|medspace'
    r'|thickspace)(?![A-Za-z])|\\[hm](?:space|skip)\{[^{}]*\}'
    r'|(?<=\d)\{(?: |\\,)\}) ?')
_NOTHING = re.compile(
    r'\\!|\\(?:left|right)\.|\\(?:left|right|[bB]ig+[lrm]?|displaystyle'
    r'|textstyle|limits|nolimits|mathstrut|strut|rm|bf|it)(?![A-Za-z])|\{\}')
_FONT = re.compile(
    r'\\(?:textbf|mathbf|boldsymbol|bm|textit|mathit|textrm|textnormal|textsf'
    r'|mathsf|texttt|mathtt|mathrm|mbox|hbox|text|emph|underline|bold'
    r'|operatorname\*?)\s*\{([^{}]*)\}')
_NUMBER_WORDS = ('zero one two three four five six seven eight nine ten eleven '
                 'twelve').split()
_NUMBER_WORD = re.compile(
    rf'\s*(?:\\text\s*\{{)?\s*({"|".join(_NUMBER_WORDS)})\s*\}}?\s*\.?\s*',
    re.I)
_DEGREE = re.compile(r'\^?\s*\{?\s*\\degree(?![A-Za-z])\s*\}?')
_EMPTY_INDEX = re.compile(r'\\log_(?:e(?![A-Za-z])|\{e\})\s*')
_MONEY = re.compile(
    r'^\s*\$?(?:\\\$|\\text\s*\{\s*\\\$\s*\})\s*(\d[\d.,\s]*?)\s*\$?\s*$')
_AROUND = re.compile(
    r'\\(?:boldsymbol|bm|mathbf|textbf|mathrm|text|underline)\s*\{(?=[^{}]*'
    r'[\\{])')
_QUAD = re.compile(r'\s*\\q?quad(?![A-Za-z])\s*')
_NAMES = {
    'dfrac': 'frac', 'tfrac': 'frac', 'cfrac': 'frac', 'dbinom': 'binom',
    'tbinom': 'binom', 'varnothing': 'emptyset', 'leq': 'le', 'geq': 'ge',
    'leqslant': 'le', 'geqslant': 'ge', 'neq': 'ne', 'dots': 'ldots',
    'cdots': 'ldots', 'dotsc': 'ldots', 'dotsb': 'ldots',
    'to': 'rightarrow', 'gets': 'leftarrow', 'arcsinh': 'arsinh', 'lg': 'log',
    'iff': 'Leftrightarrow', 'implies': 'Rightarrow', 'colon': ':',
    'lbrace': '{',
    'rbrace': '}', 'lbrack': '[', 'rbrack': ']', 'lparen': '(',
    'rparen': ')', 'vert': '|', 'lvert': '|', 'rvert': '|', 'mid': '|',
    'wedge': 'land', 'vee': 'lor', 'tg': 'tan', 'ctg': 'cot'
}  # yapf: disable
_KEPT_BRACES = ('lbrace', 'rbrace')
_COMMAND = re.compile(r'\\([A-Za-z]+)(?![A-Za-z])')
_FUNCTIONS = ('arcsin|arccos|arctan|asin|acos|atan|sinh|cosh|tanh|sin|cos|tan'
              '|cot|sec|csc|ln|log|exp')
_PLAIN = re.compile(
    rf'(?<![A-Za-z\\])(?:({_FUNCTIONS})(?=[^A-Za-z]|$)'
    r'|(pi|theta|alpha|beta|gamma|lambda|omega|sigma|phi)(?![A-Za-z])'
    r'|(infinity|infty|Infinity|oo|inf)(?![A-Za-z])'
    r'|(max|min|gcd|lcm)(?=\())')
_INVERSE = {'asin': 'arcsin', 'acos': 'arccos', 'atan': 'arctan'}
_SIGNS_OF_PROGRAMS = (('**', '^'), ('<=', r'\le '), ('>=', r'\ge '),
                      ('!=', r'\ne '), ('->', r'\rightarrow '))
_N = r'\{?(\d{1,4})\}?'
_CHOICES = re.compile(
    rf'(?<![\w\\}}])(?:C|nCr|comb|binom|binomial)\((\d{{1,4}}), ?(\d{{1,4}})\)'
    rf'|(?<![\w\\])(?:\{{\}})?[_^]{_N} ?C_{_N}(?!\w)'
    rf'|(?<![\w\\])C_{_N}\^{_N}(?!\w)|(?<![\w\\.])(\d{{1,4}}) ?C ?(\d{{1,4}})'
    rf'(?!\w)|(?<![\w\\}}])\{{?(\d{{1,4}}) ?\\choose ?(\d{{1,4}})\}}?')
_RAISED_CHOICE = re.compile(rf'(?<![\w\\])C\^{_N}_{_N}(?!\w)')
_ORDERED = re.compile(
    rf'(?<![\w\\}}])(?:P|nPr|perm)\((\d{{1,4}}), ?(\d{{1,4}})\)'
    rf'|(?<![\w\\])(?:\{{\}})?[_^]{_N} ?P_{_N}(?!\w)'
    r'|(?<![\w\\.])(\d{1,4})P(\d{1,4})(?!\w)')
_SHORT_FRACTION = re.compile(
    r'\\(frac|binom)\s*(?:\{(\w)\}|(\d)|(?<=c) ([a-z]))\s*(?:\{(\w+)\}|(\d)'
    r'|([a-z]))')


@functools.lru_cache(8192)
def plain(text: str) -> str:
  r"""Rewrites a formula in plain LaTeX, without changing what it says.

  `√2` becomes `\sqrt{2}`, `10~000` `10000`, `11 5/6` `\frac{71}{6}`, `pi/2`
  `\pi/2`. Equal texts stay equal. Takes time in proportion to the text, of
  which it leaves more than LONGEST characters alone.
  """
  if len(text) > LONGEST:
    return text
  text = re.sub(r'\s{2,}', '  ', _latex_of_signs(text)).strip()
  text = re.sub(r'(?<!\\)\\$', '', text)  # of a space behind it
  if word := _NUMBER_WORD.fullmatch(text):
    return str(_NUMBER_WORDS.index(word[1].lower()))
  text = re.sub(r'\\mathbb\s+([A-Z])', r'\\mathbb{\1}', text)
  if r'\begin' not in text:
    text = re.sub(r'\\\\(?=[A-Za-z]{2})', r'\\', text)
  text = _NOTHING.sub('', text.replace(r',\!', ',').replace('{,}', ','))
  text = _DEGREE.sub(r'^\\circ ', _EMPTY_INDEX.sub(r'\\ln ', text))
  text = _MONEY.sub(r'\1 \\text{dollars}', text)
  text = re.sub(r'\\\$|\$|(?<!\\)\\[()\[\]]', ' ', text)
  text = _COMMAND.sub(_rename, text)
  text = _THIN.sub(' ', text.replace('\n', '  ').replace('\t', '  '))
  text = _FONT.sub(_without_font, _unwrapped(text)).strip().strip('`').strip()
  text = text.strip('*_').strip() if text[:2] == '**' else text
  text = _RATE.sub(r'\\text{\1/\2}', _QUAD.sub(_quad, text))
  for sign, latex in _SIGNS_OF_PROGRAMS:
    text = text.replace(sign, latex)
  text = re.sub(r'\\text\s*\{\s*infinity\s*\}', r'\\infty ', text)
  text = _outside_text(text, _functions)
  text = _ANGLE.sub(r'\\\1(\\frac{\2\\pi}{180})', text)
  text = numerals.rewrite(_fractions(text))
  return re.sub(r'\\frac\{(\d+)\}\{1\}', r'\1', text).strip()


def closing(text: str, start: int, pair: str = '()') -> int:
  """Index of the bracket that closes the one at `start`; -1 without."""
  depth = 0
  for i in range(start, len(text)):
    if text[i] == pair[0]:
      depth += 1
    elif text[i] == pair[1]:
      depth -= 1
      if not depth:
        return i
  return -1


def _pairs(text: str) -> dict[int, int]:
  """Where each ( is closed."""
  opened, closed = [], {}
  for found in re.finditer('[()]', text):
    if found[0] == '(':
      opened.append(found.start())
    elif opened:
      closed[opened.pop()] = found.start()
  return closed


def _latex_of_signs(text: str) -> str:
  """Writes signs beyond ASCII in LaTeX."""
  if text.isascii():
    return text
  text = _scripts(_scripts(text, _RAISED, '^'), _LOWERED, '_')
  text = _VULGAR.sub(_vulgar, text)
  text = ''.join(_SIGNS.get(c, c) for c in text)
  # Wide and compatibility forms of digits, letters, brackets and spaces.
  text = unicodedata.normalize('NFKC', text)
  text = ''.join(_SIGNS.get(c, c) for c in text)
  text = re.sub('[€£¥₹]', '', text)
  return re.sub(r'[^\S\n\t]', ' ', text)


def _scripts(text: str, table: dict[str, str], sign: str) -> str:
  """Writes runs of raised or lowered digits as ^{...} or _{...}."""
  run = re.compile('[' + ''.join(table) + ']+')
  return run.sub(lambda m: f'{sign}{{{"".join(table[c] for c in m[0])}}}', text)


def _vulgar(match: re.Match[str]) -> str:
  over, under = unicodedata.normalize('NFKC', match[0]).split('⁄')
  return rf'\frac{{{over}}}{{{under}}}'


def _rename(match: re.Match[str]) -> str:
  name = match[1]
  if name not in _NAMES:
    return match[0]
  new = _NAMES[name]
  return new if not new[0].isalpha() and name not in _KEPT_BRACES else ('\\' +
                                                                        new)


def _without_font(match: re.Match[str]) -> str:
  """Drops the font of numbers and signs; words keep it, as \\text."""
  inside = match[1]
  if match[0] == match.string.strip() and inside.strip()[:1].isdigit():
    return inside  # \\text{12 cm}
  if re.search('[A-Za-z]', inside):
    if match[0].startswith((r'\boldsymbol', r'\bm', r'\bold')):
      return inside
    return match[0]
  return inside


def _unwrapped(text: str) -> str:
  """Drops the font around a formula with commands."""
  for _ in range(3):
    found = _AROUND.search(text)
    end = closing(text, found.end() - 1, '{}') if found else -1
    if not found or end < 0:
      return text
    text = text[:found.start()] + text[found.end():end] + text[end + 1:]
  return text


def _quad(match: re.Match[str]) -> str:
  """A wide space separates a list, or else is a space."""
  text, at, end = match.string, match.start(), match.end()
  left = text[at - 1] if at else ','
  listed = left.isalnum() or left in ')}]'
  right = re.match(r'[-+(]?(?:\d|\\frac|\\sqrt|[A-Za-z]\s*=)',
                   text[end:end + 40])
  return ', ' if listed and right else ' '


def _outside_text(text: str, change: Callable[[str], str]) -> str:
  parts = re.split(
      r'(\\(?:text|mathrm|mbox|textbf|textit|operatorname)\s*'
      r'\{[^{}]*\})', text)
  return ''.join(
      part if i % 2 else change(part) for i, part in enumerate(parts))


def _functions(text: str) -> str:
  """Reads the notation of programs: sqrt(2), exp(x), C(10,3), 2*pi."""
  text = _CHOICES.sub(lambda m: _chosen(m, 'binom'), text)
  text = re.sub(r'(?<![\w\\}])C\(([nmN]), ?([kr]|\d)\)', r'\\binom{\1}{\2}',
                text)
  text = _RAISED_CHOICE.sub(r'\\binom{\2}{\1}', text)
  text = _ORDERED.sub(lambda m: _chosen(m, 'ordered'), text)
  text = _calls(text)
  text = _PLAIN.sub(_plain_name, text)
  return re.sub(r'(?<!\\)\*', r'\\cdot ', text)


def _chosen(match: re.Match[str], kind: str) -> str:
  n, k = (g for g in match.groups() if g)
  if int(k) > int(n):
    return match[0]
  if kind == 'binom':
    return rf'\binom{{{n}}}{{{k}}}'
  return rf'\frac{{{n}!}}{{{int(n) - int(k)}!}}'


_CALL = re.compile(r'(?<![A-Za-z\\])(sqrt|cbrt|abs|exp|log_?\{?(?:2|10)\}?) ?\('
                   r'|\\sqrt(\[\d\])? ?\(|(?<!\^)\^ ?\(')
_RADICAND = re.compile(r'\\sqrt(\[\d\])? ?(\d+(?:\.\d+)?|[A-Za-z](?![A-Za-z])'
                       r'|\\frac\{\d+\}\{\d+\}'
                       r'|\\(?!sqrt|frac)[A-Za-z]+(?![A-Za-z]|\s*\{))')
_RATE = re.compile(r'\\frac\s*\{\s*\\(?:text|mathrm)\{([A-Za-z ]+)\}\s*\}\s*'
                   r'\{\s*\\(?:text|mathrm)\{([A-Za-z ]+)\}\s*\}')
_ANGLE = re.compile(r'\\(sin|cos|tan|cot|sec|csc)\s*\(?\s*(\d+(?:\.\d+)?)\s*'
                    r'\^\s*\{?\s*\\circ\s*\}?\s*\)?')


def _calls(text: str) -> str:
  """Gives the arguments of roots, powers and exp their braces."""
  text = re.sub(r'(?<![A-Za-z\\])sqrt(?= ?[\dA-Za-z\\])', r'\\sqrt', text)
  for _ in range(_DEEPEST):  # nested calls; each pass is linear
    out, at, found = [], 0, False
    ends = _pairs(text)
    for call in _CALL.finditer(text):
      end = ends.get(call.end() - 1, -1)
      if end < 0 or call.start() < at:
        continue
      inside = text[call.end():end]
      out += [text[at:call.start()], _called(call, inside)]
      at, found = end + 1, True
    text = ''.join(out) + text[at:]
    if not found:
      break
  return _RADICAND.sub(lambda m: rf'\sqrt{m[1] or ""}{{{m[2]}}}', text)


def _called(call: re.Match[str], inside: str) -> str:
  name = call[1] or ''
  if name == 'sqrt' or call[0].startswith(r'\sqrt'):
    return rf'\sqrt{call[2] or ""}{{{inside}}}'
  if name == 'cbrt':
    return rf'\sqrt[3]{{{inside}}}'
  if name == 'abs':
    return f'|{inside}|'
  if name == 'exp':
    return f'e^{{{inside}}}'
  if name:
    base = re.sub(r'\D', '', name)
    return rf'\log_{{{base}}}({inside})'
  return f'^{{{inside}}}' if not inside.isdigit() else f'^{{({inside})}}'


def _plain_name(match: re.Match[str]) -> str:
  function, greek, infinity, named = match.groups()
  if function:
    return '\\' + _INVERSE.get(function, function) + ' '
  return rf'\{greek} ' if greek else r'\infty ' if infinity else '\\' + named


def _fractions(text: str) -> str:
  """Writes \\frac12 and \\frac 1 2 with braces."""
  return _SHORT_FRACTION.sub(
      lambda m: rf'\{m[1]}{{{m[2] or m[3] or m[4]}}}'
      rf'{{{m[5] or m[6] or m[7]}}}', text)
