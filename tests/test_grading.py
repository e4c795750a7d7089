import pytest

from exprl_jax.grading import boxed, grade


@pytest.mark.parametrize('text, want', [
    (r'so \boxed{17}', '17'),
    (r'\boxed{1} no, \boxed{2}', '2'),  # the last one counts
    (r'\boxed{\frac{1}{2}}', r'\frac{1}{2}'),
    (r'\boxed{3} and \boxed{4', '3'),  # the last balanced one
    (r'\boxed{ 8 }', '8'),
    ('17', None), (r'\boxed{', None), ('', None),
])
def test_boxed(text, want):
  assert boxed(text) == want


@pytest.mark.parametrize('text, gold, want', [
    (r'\boxed{ 17 }', '17', True),
    (r'\boxed{17.0}', '17', True),
    (r'\boxed{1,000}', '1000', True),
    (r'\boxed{18}', '17', False),
    (r'\boxed{}', '17', False),
    ('the answer is 17', '17', False),  # without a box nothing counts
    (r'\boxed{x + 1}', 'x+1', True),
    (r'\boxed{500\%}', '5', False),
    (r'\boxed{B}', 'B', True),
])
def test_grade(text, gold, want):
  assert grade(text, gold) is want
