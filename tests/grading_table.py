r"""A table of answers by kind: (gold, right answers, wrong answers).

Answers are contents of a box, unless they say otherwise. Every kind has both
directions; the wrong ones are near misses.
"""

MATH = {
    'numbers side by side': [
        ('8', ['3+5', r'4\cdot 2', r'2(4)', '8.'], ['5 3', '5  3', '3 5', r'5\ 3', r'5\,3', '5~3', r'\text{5 3}', '4 2', r'4\;2', '8 8', '8 0', '0 8']),
        ('6', [r'2 \times 3', '(2)(3)', '3!'], ['1 2 3', r'2\ 3', '2 3', '3 2 1', r'3\quad 2', r'1 5', '6 6']),
        ('7', ['7.0', '+7'], ['3 4', '7 7', r'3\qquad 4', '3\n4', r'1 + 2 4']),
        ('3', ['1+2', '3.00'], [r'1\quad 2', r'\frac{1}{2} \frac{1}{4} 24', '1 3', "1'2", r'3 \frac{7}{2}']),
        ('0', ['0.0', '-0', r'3-3'], ['10 000', '0 0', '0 1', '1 0']),
        ('2', [r'\frac{4}{2}', r'1+1'], ['3 1/2', '1 1', r'4 \frac{1}{2}', '4 1/2', '2 2/2']),
        ('3/2', [r'3\cdot\frac{1}{2}'], ['3 1/2', r'3\frac{1}{2}', r'3 \tfrac12', '1 3/2']),
        ('1.5', ['3/2', '1.50', '1.500000'], ['1 .5', '1. 5', '1.5.5', '3 .5']),
        ('120', ['5!', '120.0'], ['1 2 3 4 5', '12 10', '60 2', '1 20']),
        ('40', [r'2^3\cdot 5'], ['8 5', '4 0', r'20 \frac{4}{2}']),
    ],
    'thousands': [
        ('10000', ['10,000', '10 000', '10~000', '10\u00a0000', '10\u2009000', '10\u202f000', r'10\,000', r'10\;000', r'10\ 000', r'10\:000', '10{,}000', r'10,\!000', "10'000", '10\u2019000', '10000.00', '1e4', r'$10\,000$', r'10\thinspace 000'], ['10,00', '10 00', '10.000', r'10\quad 000', '10, 000', '1 000', '100 000', '10 0000', '10\n000']),
        ('1234567', ['1,234,567', '1 234 567', r'1\,234\,567', '1.234.567', '1234567.0', '12,34,567'], ['1,234,56', '1 234 56', '1234,567', '1 234 568', '1.234567']),
        ('1234.5', ['1,234.5', '1 234.5', '1234.50', '1,234.50'], ['1.234.5', '1,234,5', '1 234 5', '12345']),
        ('10,000', ['10000', '10 000'], ['10', '10, 000']),
        ('10 000', ['10000', '10,000'], ['10', '10 001', '0']),
        ('16,386.20', [r'\$16386.20', r'\$16,\!386.2', '16 386.2'], ['16386.21', '16.386']),
        ('(1,234)', ['(1, 234)'], ['1234', '(1234)', '(1,235)']),
    ],
    'mixed numbers': [
        ('71/6', ['11 5/6', r'11\frac{5}{6}', r'11 \frac56', r'11\ \tfrac{5}{6}', '11\u215a', r'11\,\frac{5}{6}', r'\frac{71}{6}'], ['11 6/5', '115/6', r'11\cdot\frac{5}{6}', '11 5/7', '-11 5/6', '12 5/6', r'11 - \frac56']),
        ('5/4', ['1 1/4', '1.25', '1\u00bc', r'1\dfrac14'], ['1/4', '11/4', '1 1 / 4 1', '1 4/4']),
        ('-7/2', ['-3 1/2', r'-3\frac12', '-3.5', '\u22123\u00bd'], ['3 1/2', '-3-1/2+1', '-2 1/2', '-3 + 1/2']),
        ('3 1/2', ['7/2', '3.5', r'3\frac{1}{2}', r'\frac{7}{2}'], ['3/2', '1.5', '31/2', '2']),
        (r'2\frac{1}{3}', ['7/3', '2 1/3'], ['2/3', r'2\cdot\frac13']),
        (r'2\frac{1}{2}x', [r'\frac{5x}{2}', '2.5x'], ['x', '2x/2']),
    ],
    'scientific': [
        ('1500', ['1.5e3', '1.5E3', '1.5e+3', r'1.5\times 10^3', r'1.5 \cdot 10^{3}', '1.5*10^3', '1.5 x 10^3', '1.5\u00d710\u00b3', '15e2', '1.5*10**3'], ['1.5e2', '1.5e-3', '1.5e4', '1.53', '1.5 e 3', r'1.5\times 10^{2}', '1.6e3']),
        ('0.0025', ['2.5e-3', r'2.5\times10^{-3}', '2.5E-03', r'25\cdot 10^{-4}', '1/400'], ['2.5e3', '2.5e-4', '0.025', '2.4e-3']),
        ('1e6', ['1000000', '10^6', '1,000,000', '1.0e6'], ['1e5', '100000', '16', '6e']),
        ('6.02e23', [r'6.02\times 10^{23}', '602e21'], [r'6.02\times 10^{22}', '6.03e23', '6.02']),
        ('2e', [r'2\cdot e', '2 e'], ['2e1', '2']),
        ('2*10^3', ['2000', '2e3'], ['200', '23']),
    ],
    'endless decimals': [
        ('0.333...', [r'\frac13', '1/3', r'0.\overline{3}', '0.(3)', r'0.\dot{3}', '0.3333...', r'0.33\ldots', '0.333\u2026', r'0.\bar{3}', r'0.3\overline{3}'], ['0.333', '0.33', '0.3', '1/4', '0.334', '333/1000', '0.33333']),
        ('1/3', [r'0.\overline{3}', '0.333...', r'0.\bar 3', '0.(3)', r'0.\overline{33}', r'.\overline{3}'], [r'0.\overline{4}', '0.333', r'0.0\overline{3}', r'0.\overline{34}', r'3.\overline{3}', '0.3']),
        ('1/6', [r'0.1\overline{6}', '0.1666...', '0.1(6)', r'0.1\dot{6}'], [r'0.\overline{16}', '0.166', '0.1616...', r'0.\overline{6}']),
        ('1/7', [r'0.\overline{142857}', '0.142857142857...', r'0.\dot{1}4285\dot{7}'], [r'0.\overline{14285}', '0.1428']),
        ('0.999...', ['1', r'0.\overline{9}'], ['0.999', '0.99']),
        (r'1.\overline{27}', ['14/11', '1.2727...'], ['1.27', r'1.2\overline{7}']),
        ('0.1212...', ['4/33', r'0.\overline{12}'], ['0.1212', '0.12']),
        (r'\pi', ['3.14159265'], ['3.14', '3.14...', '22/7', '3.1416']),
    ],
    'moduli': [
        (r'n \equiv 1 \mod 4', [r'n \equiv 1 \pmod 4', r'n \equiv 1 \pmod{4}', r'n\equiv 1\ (\mathrm{mod}\ 4)', r'n \equiv 5 \pmod 4', r'1 \pmod 4', r'n \equiv -3 \pmod 4', r'n \equiv 1 (mod 4)', r'n \equiv 1 \bmod{4}', '$n \u2261 1 (mod 4)$'], [r'n \equiv 1 \mod 3', r'n \equiv 3 \mod 4', 'n = 1', '1', r'n \equiv 1 \pmod 8', r'n\equiv 1', r'n \equiv 1 \mod 40', r'm \equiv 1 \mod 4', r'1 \pmod{3}', r'n \equiv 2 \pmod 4']),
        (r'3 \mod 7', ['3', r'3 \pmod 7', r'10 \pmod 7', '3 mod 7', r'3 \bmod 7'], [r'3 \mod 5', '7', r'4 \mod 7', r'3 \pmod{70}', '10']),
        ('3', [r'3 \bmod 7', r'10 \bmod 7'], [r'4 \bmod 7', r'n \equiv 3 \pmod 7']),
        (r'x \equiv 1, 3 \pmod 8', [r'x \equiv 3, 1 \pmod{8}', r'x \equiv 1,3 \pmod 8'], [r'x \equiv 1 \pmod 8', r'x \equiv 1, 3 \pmod 4', r'x\equiv 1,5 \pmod 8', r'x \equiv 1,3,5 \pmod 8']),
        (r'x \equiv a \pmod p', [r'x\equiv a \pmod{p}'], [r'x \equiv a \pmod q', r'x \equiv b \pmod p']),
    ],
    'primes': [
        ("f'(x)=2x", [r"f'(x) = 2x", r"f^{\prime}(x)=2x", '2x', 'f\u2032(x)=2x', "f'(x)=x+x", r'f^\prime(x)=2x'], ['f(x)=2x', "f''(x)=2x", "f'(x)=3x", "g'(x)=2x"]),
        ("y''+y=0", [r"y^{\prime\prime}+y=0", "y + y'' = 0", "y''=-y", 'y\u2033+y=0'], ["y'+y=0", 'y+y=0', "y'''+y=0", "y''-y=0", "y''+y'=0"]),
        ("y'=y", ["y = y'"], ["y''=y", 'y=y']),
        ("f''(x)", [r"f^{(2)}(x)"], ["f'(x)", 'f(x)', "f'''(x)"]),
        ("f'(x)g(x)+f(x)g'(x)", ["f(x)g'(x)+f'(x)g(x)", "g'(x)f(x)+g(x)f'(x)"], ["f'(x)g'(x)+f(x)g(x)", 'f(x)g(x)+f(x)g(x)', "f'(x)g'(x)", "2f(x)g(x)"]),
        ("A'", [r"A^{\prime}"], ['A', "A''", "B'"]),
    ],
    'lists': [
        ('1,1,2', ['1, 1, 2', '2,1,1', r'1, 2 \text{ and } 1', '1;1;2', '1, 1 and 2', '1.0,1,4/2'], ['1,2,2', '1,2', '1,1,2,2', '1,1', r'\{1,2\}', '1 1 2', '1,1,1,2', '2', '4']),
        ('1,2', ['2,1', r'x=1 \text{ or } x=2', '1 or 2', r'x = 1, 2', r'\{1,2\}', 'x=1, x=2', r'x_1=1, x_2=2', '1; 2'], ['1', '2', '1,2,2', '1,3', '1,2,3', '12', '1.2', '1 2', '3', '1,1,2', '(1;3)']),
        (r'\{1,2,3\}', [r'\{3,2,1\}', r'\{1,2,3,3\}', '1,2,3', r'\left\{1,2,3\right\}', r'x\in\{1,2,3\}', r'A=\{1,2,3\}', r'\lbrace 1,2,3\rbrace'], [r'\{1,2\}', r'\{1,2,4\}', '1,2,3,3', r'\{1,2,3,4\}', '(1,2,3)', r'\{\}', r'\{1,2 3\}']),
        (r'x=1,y=2', ['y=2,x=1', '(1,2)', r'(x,y)=(1,2)', 'x=1 and y=2', 'x = 1 , y = 2', '1,2'], ['x=2,y=1', '2,1', '(2,1)', 'x=1', 'x=1,y=3', 'y=1,x=2', '3']),
        ('(1,2)', ['(1, 2)', r'\left(1,2\right)', '(x,y)=(1,2)', 'x=1, y=2', '(2/2, 2.0)', 'y=2, x=1'], ['(2,1)', '[1,2]', '(1,2]', r'\{1,2\}', '(1,3)', '(1,2,3)', '2,1', '(12)', '3', '(1,2),(2,1)']),
        ('(1,2,3)', ['(1, 2, 3)', r'\langle 1,2,3\rangle', '(1,2,6/2)'], ['(1,3,2)', '(3,2,1)', '(1,2)', '(1,2,3,3)', r'\{1,2,3\}', '(1,2,4)']),
        ('(1,2),(3,4)', ['(3,4),(1,2)', r'(1,2) \text{ and } (3,4)', r'\{(1,2),(3,4)\}', r'(x,y)=(1,2), (3,4)', '(1,2) or (3,4)'], ['(2,1),(3,4)', '(1,2)', '(1,3),(2,4)', '1,2,3,4', '(1,2,3,4)', '(1,2),(4,3)', '(1,2),(3,4),(5,6)']),
        (r'\pm 2', ['2,-2', '-2, 2', r'x=\pm 2', r'x=2 \text{ or } x=-2', r'\{-2,2\}', '\u00b12'], ['2', '-2', r'\pm 3', '2,2', '2,3', r'\pm 2, 0']),
        (r'1\pm\sqrt{2}', [r'1+\sqrt2, 1-\sqrt2', r'1-\sqrt{2}, 1+\sqrt{2}', r'x = 1 \pm \sqrt{2}'], [r'1+\sqrt2', r'-1\pm\sqrt2', r'1\pm\sqrt{3}', r'\pm1+\sqrt2']),
        ('1,2,3,...,10', [r'1,2,3,\ldots,10', r'1, 2, 3, \dots, 10'], ['1,2,3,10', '1,2,3', '1,2,3,4,10', r'1,2,3,\ldots,11']),
        (r'\sqrt{2}, \sqrt{3}', [r'\sqrt3,\sqrt2', r'\sqrt{3}, \frac{2}{\sqrt2}'], [r'\sqrt2,\sqrt2', r'\sqrt{2}', r'\sqrt{2},\sqrt{5}', r'\sqrt{2}+\sqrt{3}']),
        ('p=5,q=2;p=7,q=2', ['(5,2),(7,2)', 'p=7,q=2;p=5,q=2'], ['(2,5),(7,2)', 'p=5,q=2', '(5,2)']),
    ],
    'intervals': [
        ('(1,2]', ['(1, 2]', r'x\in(1,2]', ']1,2]', '1<x\\le 2'] [:3], ['[1,2]', '(1,2)', '[1,2)', '1,2', '(2,1]', '(1,3]']),
        ('[1,2]', ['[1, 2]', r'\left[1,2\right]', r'x \in [1,2]', '[1.0,2]'], ['(1,2)', '1,2', '[2,1]', '[1,2)', r'\{1,2\}']),
        (r'(-\infty, 2)', [r'(-\infty,2)', '(-\u221e, 2)', r'x\in(-\infty,2)', '(-infinity, 2)', '(-inf,2)'], [r'(-\infty,2]', r'(\infty,2)', r'(2,\infty)', r'(-\infty,3)', r'[2, \infty)']),
        (r'(1,2)\cup(3,4)', [r'(3,4)\cup(1,2)', r'(1,2) \cup (3, 4)', '(1,2)\u222a(3,4)', r'x\in(1,2)\cup(3,4)'], ['(1,2),(3,4)', '(1,4)', r'(1,2)\cup(3,5)', r'(1,2)\cap(3,4)', r'[1,2)\cup(3,4)', '(1,2)']),
        ('1<x<2', ['(1,2)', '1 < x < 2', '2>x>1'], [r'1\le x<2', '1<x<3', '[1,2]', '1,2', 'x<2', '1<y<2']),
        (r'x\ge 3', [r'3\le x', 'x\u22653', 'x>=3', r'x \geqslant 3', r'[3,\infty)'], ['x>3', r'x\le 3', r'x\ge 4', '3', r'(3,\infty)', r'y\ge 3']),
        (r'\mathbb{R}', [r'(-\infty,\infty)', '\u211d'], [r'\mathbb{Z}', r'(0,\infty)', 'R^2']),
    ],
    'Unicode': [
        (r'\sqrt{2}', ['\u221a2', '\u221a(2)', '\u221a{2}', 'sqrt(2)', r'\sqrt2', r'\sqrt 2', '2^(1/2)', '2^{0.5}', '2\u00b7\u221a2/2'], ['2', '\u221a3', '1.414', r'\sqrt[3]{2}', '\u221a(2+1)', '-\u221a2', '\u221b2']),
        ('1/2', ['\u00bd', '1\u20442', '0.5', '.5', r'\frac 1 2', r'\dfrac12', '1\u22152', r'\cfrac{1}{2}', '\uff11/\uff12', r'2^{-1}'], ['\u00bc', '2', '12', '\u2153', '-\u00bd', '1\u00bd']),
        ('-3', ['\u20133', '\u22123', '\u20143', '- 3', r'$-3$', '\u2010' + '3', '-3.0', '\uff0d3', '\\text{-}3'], ['3', '+3', '\u20134', '0-4']),
        ('6', ['2\u00d73', '2\u22c53', '2\u00b73', '12\u00f72', '\uff16'], ['2\u00d74', '12\u00f73']),
        ('x^2', ['x\u00b2', 'x*x', 'x**2', 'x^{2}', r'x\cdot x'], ['x\u00b3', 'x2', '2x', 'x\u2082']),
        ('x^{10}', ['x\u00b9\u2070', 'x**10', 'x^10', 'x^(10)'], ['10x', r'x^1 0', 'x^{1}']),
        (r'\pi', ['\u03c0', 'pi', r'\mathrm{\pi}', '1\u03c0', r'\pi.'], ['3.14', 'p', r'2\pi', 'i p', r'\phi']),
        (r'\frac{\pi}{3}', ['\u03c0/3', 'pi/3', r'\pi/3', r'\frac13\pi', r'\frac{1}{3}\cdot\pi'], ['3\u03c0', 'pi/4', '1.047', '\u03c0']),
        ('90', ['90\u00b0', r'90^\circ', r'90^{\circ}', '90 degrees', r'90\text{ degrees}', r'90\degree', '90\u00ba'], ['9\u00b0', '-90\u00b0', r'\frac{\pi}{2}', '90 0', '100\u00b0']),
        (r'\varnothing', ['\u2205', r'\emptyset', r'\{\}', r'\{ \}', r'\text{no solution}'], ['0', r'\{0\}', r'\{\emptyset\}', 'O']),
        (r'\infty', ['\u221e', 'infinity', r'+\infty', r'\text{infinity}'], [r'-\infty', '0', '10^{100}', '8']),
        (r'a\le b', ['a\u2264b', 'a<=b', r'b\ge a'], ['a<b', r'a\ge b', 'a=b']),
        (r'\sqrt[3]{5}', ['\u221b5', 'cbrt(5)', '5^{1/3}', '5^(1/3)'], ['\u221a5', '5/3', r'\sqrt[4]{5}']),
        (r'x \ne 2', [r'x\neq 2', 'x\u22602', 'x != 2'], ['x=2', r'x\ne 3', '2']),
    ],
    'functions': [
        ('pi/2', [r'\frac{\pi}{2}', r'\pi/2', '\u03c0/2', r'0.5\pi'], [r'\pi', r'\frac{2}{\pi}', r'\frac{\pi}{3}', 'p/2', '1.57', r'\frac{pi}{3}']),
        ('2pi', [r'2\pi', '2*pi', r'2 \cdot \pi', 'pi*2'], [r'\pi^2', r'3\pi', r'\pi', '2p']),
        ('ln(2)', [r'\ln 2', r'\ln(2)', r'\ln{2}', 'ln 2', r'\log_e 2', r'-\ln\frac12', 'ln2'], [r'\ln 3', r'\log_{10} 2', r'2\ln 2', '2', '0.69', r'\ln(-2)', 'l n 2 2']),
        ('exp(2)', ['e^2', r'e^{2}', r'\exp(2)', r'e\cdot e', 'exp(1+1)'], ['2e', 'e^3', 'e', '7.39', 'e^{-2}', 'exp(3)']),
        ('sin(x)', [r'\sin x', r'\sin(x)', r'\cos(\frac{\pi}{2}-x)', r'\sin{x}', 'sin x'], [r'\cos x', r'\sin 2x', r'-\sin x', r'\sin y', r'\sin^2 x', 'x']),
        ('sqrt(3)/2', [r'\frac{\sqrt{3}}{2}', '\u221a3/2', r'\frac{\sqrt3}{2}', '(sqrt 3)/2', r'\frac{3}{2\sqrt 3}'], [r'\sqrt{\frac32}', r'\frac{3}{2}', r'\frac{\sqrt2}{3}', r'\frac{\sqrt3}{4}']),
        ('C(10,3)', ['120', r'\binom{10}{3}', r'\dbinom{10}{3}', r'\frac{10!}{3!7!}', r'{10 \choose 3}', '{}_{10}C_3', 'C(10,7)', r'^{10}C_3', 'C_{10}^{3}'], ['30', '(10,3)', '720', '1000', r'\binom{10}{4}', '13', r'\frac{10}{3}']),
        ('P(5,2)', ['20', '5P2', r'\frac{5!}{3!}'], ['10', '7', '25']),
        ('log2(8)', ['3', r'\log_2 8', r'\log_2(8)', r'\log_{2}{8}'], ['2', '8', r'\log_8 2', '4']),
        ('sqrt(2+sqrt(3))', [r'\sqrt{2+\sqrt{3}}', r'\frac{\sqrt6+\sqrt2}{2}', '\u221a(2+\u221a3)'], [r'\sqrt{2}+\sqrt{3}', r'\sqrt{2-\sqrt3}', r'\sqrt{5}']),
        ('2^(x+1)', ['2^{x+1}', r'2\cdot 2^x', '2**(x+1)'], ['2^x+1', '2^{x}', '2(x+1)']),
        ('arctan(1)', [r'\frac{\pi}{4}', r'\arctan 1', 'atan(1)', r'\tan^{-1}(1)'], ['45', '1', r'\frac{\pi}{2}', r'\tan 1']),
        ('x^2*sin(x)', [r'x^2\sin x', r'\sin(x) x^2', r'x^{2}\sin(x)'], [r'x\sin x', r'\sin(x^2)', r'x^2\cos x', r'x^2+\sin x']),
        ('e^(-x)', ['e^{-x}', 'exp(-x)', r'\frac{1}{e^x}', r'\exp(-x)'], ['e^x', '-e^x', 'e-x', 'e^{-y}']),
        ('abs(x-1)', ['|x-1|', r'\left|x-1\right|', '|1-x|', r'\lvert x-1\rvert'], ['x-1', '|x+1|', '|x|-1']),
        ('2**10', ['1024', '2^{10}', '2^10'], ['20', '210', '2^{11}', '12']),
        ('theta', [r'\theta', '\u03b8'], [r'\phi', 't', r'2\theta']),
    ],
    'complex': [
        ('2i', ['(1+i)^2', r'2\cdot i', r'\sqrt{-4}', 'i+i', '0+2i', r'\frac{-2}{i}', r'2e^{i\pi/2}'], ['-2i', '2', '(1-i)^2', '2+i', '-2', '2j+1', r'\sqrt{4}']),
        ('-1', ['i^2', r'e^{i\pi}', r'i\cdot i', r'\mathrm{i}^2'], ['i', '-i', 'i^4', '1']),
        ('1+i', ['i+1', r'\sqrt{2}e^{i\pi/4}', r'\frac{2}{1-i}'], ['1-i', '-1+i', '1', r'\sqrt2', r'\sqrt{2}e^{-i\pi/4}']),
        ('a+bi', ['bi+a', 'a + b i', 'ib+a'], ['a-bi', 'b+ai', 'a+b']),
        (r'\frac{1}{2}+\frac{\sqrt3}{2}i', [r'e^{i\pi/3}', r'\frac{1+i\sqrt3}{2}', r'\frac{1+\sqrt{3}i}{2}'], [r'e^{-i\pi/3}', r'\frac{1-i\sqrt3}{2}', r'\frac{\sqrt3+i}{2}']),
        ('i,-i', ['-i,i', r'\pm i', r'x=\pm i'], ['i', r'\pm 1', 'i,i', '1,-1']),
    ],
    'units': [
        ('50 people', ['50', r'50\text{ people}', '50 people', r'50 \textbf{ people}', '50 persons', '50.0', r'\text{50 people}'], ['51', '50%', '500 people', '5 people', 'people', '50 more than x', r'50 \text{ or } 51']),
        ('50', [r'50 \text{ people}', '50 apples', r'50\ \text{apples}', '50 square units', r'50 \mathrm{\ units}', r'50\text{ ways}'], ['5 people', r'50 \text{ thousand}', '50 million', r'\text{about } 50', r'50 \text{ or more}', r'\text{not } 50', '50x', '50y', '50 dozen']),
        ('5 m/s', [r'5\text{ m/s}', '5', r'5\,\mathrm{m/s}', r'5\ \text{meters per second}', r'5 \frac{\text{m}}{\text{s}}', '18 km/h', r'5\text{ m}/\text{s}'][:4] + ['18 km/h', r'5\text{ m}/\text{s}'], ['5 km/h', '6 m/s', '5 m', '5 s', r'5\text{ m/s}^2', '5 cm/s', '50']),
        ('5 cm', ['5', r'5\text{ cm}', r'5\mathrm{cm}', '5cm', '0.05 m', '50 mm', r'5 \,\text{centimeters}'], ['5 m', '5 km', '50 cm', r'5\text{ cm}^2', '5 s', '5 kg', '0.05']),
        ('12 square meters', ['12', r'12\text{ m}^2', '12 m^2', r'12 \text{ sq m}', r'12\,\mathrm{m}^{2}'], ['12 m', r'12\text{ m}^3', '12 cm^2', '144']),
        (r'\$5', ['5', '5 dollars', r'\$5.00', r'\text{\$}5', '5 USD', '500 cents'], [r'\$6', '5 cents', '0.05', r'\$50']),
        ('2 hours', ['2', '120 minutes', r'2\text{ hr}', '2 hrs', '7200 s'], ['2 minutes', '120', '2 days', '3 hours']),
        ('5m', ['5 m', 'm+4m', r'5\cdot m'], ['5', '4m', '5n', '5m^2', '25']),
        ('3t', [r'3\cdot t', 't+t+t', '3 t'], ['3', 't', '3s', '3t^2']),
        ('2d+h', ['h+2d'], ['2', '2d', '2+h']),
        ('125 miles', ['125', r'125\text{ mi}', '125 mile'], ['125 km', '12.5 miles']),
        ('25^\\circ C', ['25', r'25^\circ\text{C}', '25\u00b0C'], ['26', '-25', '2.5']),
        ('3rd', ['3', r'3^{\text{rd}}'], ['4th', '2']),
        ('10\\%', ['0.1', '10', '10%', '10 percent', r'\frac{1}{10}'], ['1', '100', '11%', '0.01']),
        ('0.1', ['1/10'], ['1%', '0.1%', '1']),
    ],
    'words': [
        ('Paris', [r'\text{Paris}', r'\textbf{Paris}', r'\mathrm{Paris}', 'paris', '**Paris**', 'Paris.'], ['London', r'\text{Pairs}', 'Par is not', r'\text{Paris or London}', 'P']),
        (r'\text{even}', ['even', 'Even', r'\mathrm{even}', r'\textit{even}'], ['odd', 'neve', '2', r'\text{not even}', 'e v e n'] [:4]),
        ('New York', [r'\text{New York}', 'new york', r'\textbf{New York}'], ['York', 'New', r'\text{New Yorker}', r'\text{York New}']),
        (r'\text{no}', ['no', 'No'], ['on', 'yes', '0', r'\text{not}']),
        ('no solution', [r'\text{no solution}', r'\emptyset', 'No solutions', r'\text{no real solutions}'], ['0', 'one solution', r'\{0\}']),
        ('does not exist', ['DNE', r'\text{DNE}', r'\text{does not exist}'], ['0', r'\infty', 'exists']),
        ('AB', [r'\text{AB}', 'AB.'], ['BA', 'A', 'B', 'ABC']),
    ],
    'letters': [
        ('x-y', ['x - y', '-y+x', '-(y-x)'], ['x,y', 'x+y', 'y-x', 'x y', 'x.y', 'xy', r'x\text{-}y'][:-1]),
        ('x,y', ['y,x', 'x and y', r'x \text{ and } y'], ['x-y', 'xy', 'x', 'x,x', 'x+y', 'x y']),
        ('Alice and Bob', ['Bob and Alice', 'Alice, Bob', r'\text{Alice and Bob}', r'\text{Alice} \text{ and } \text{Bob}'], ['Alice', 'Alice and Bbo', 'Alice or', 'Alice, Bob, Carol', 'Alice, Carol']),
        ('Monday, Friday', ['Friday, Monday', r'\text{Monday}, \text{Friday}'], ['Monday', 'Monday, Firday', 'Sunday, Friday']),
        ('ab+c', ['c+ba'], ['abc', 'ac+b', 'ab-c', 'ab,c']),
        ('12', ['3(4)', '(3)(4)', '3*4', r'\frac{1}{2}(24)', '(2)(2)(3)', r'2\binom{4}{2}', r'(3)4', '2(2)(3)', r'(\frac12)(24)'], ['12(1)(2)', '8(4)', '9(3)', '(5)(7)', '(6)6', r'6\binom{4}{2}', '(3)(4)(5)']),
        ('7', ['(3)+(4)'], ['3(4)', '(3)(4)', r'3(\frac{8}{2})', r'(3)4', '-3(4)', '(1)(6)']),
        ('123', [r'3+\binom{10}{3}'], [r'3\binom{10}{3}', r'\binom{10}{3}3', r'\binom{10}{3}(3)']),
        (r'2\pi', [r'\pi(2)', r'(2)\pi', r'2(\pi)'], [r'2+\pi', r'\pi(3)', r'\pi^2']),
    ],
    'fractions': [
        ('3/4', [r'\frac34', r'\frac{3}{4}', '0.75', '.75', r'\frac{6}{8}', r'\dfrac{3}{4}', '3:4', r'75\cdot 10^{-2}', r'\left(\frac{3}{4}\right)', r'\boldsymbol{\frac{3}{4}}'], ['4/3', '34', '3,4', '0.7', r'\frac43', '-3/4', '3 4', r'75\%', '(3,4)', '3.4', r'3\frac{}{4}']),
        (r'\frac{a}{b}', ['a/b', r'\frac ab', r'ab^{-1}'], ['b/a', 'ab', 'a', r'\frac{a}{c}']),
        (r'\frac{x+1}{2}', ['(x+1)/2', r'\frac12(x+1)', '0.5x+0.5'], ['x+1/2', r'\frac{x}{2}+1', '(x+1)2']),
    ],
    'expressions': [
        ('x^2+2x+1', ['(x+1)^2', '1+2x+x^2', 'x(x+2)+1'], ['(x-1)^2', 'x^2+1', '(x+1)^3', '(y+1)^2', 'x^2+2x', 'x^2+2x-1']),
        ('y=2x+1', ['2x+1', 'y = 1 + 2x', 'y-2x-1=0', 'f(x)=2x+1'][:3], ['y=2x-1', 'y=2x', 'x=2y+1', '2x']),
        ('x=5', ['5', '5=x', 'x = 5.0', 'x=2+3'], ['x=6', 'y=6', 'x=-5', '5=6', 'x=5,6', '2x=5']),
        (r'\begin{pmatrix}1&2\\3&4\end{pmatrix}', [r'\begin{bmatrix}1&2\\3&4\end{bmatrix}', r'\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}'], [r'\begin{pmatrix}1&3\\2&4\end{pmatrix}', r'\begin{pmatrix}1&2\\3&5\end{pmatrix}', '1,2,3,4', '-2']),
        ('n!', ['n(n-1)!', r'n \cdot (n-1)!'], ['(n-1)!', 'n', '(n+1)!']),
        ('204_5', ['204_{5}', r'204_{5}'], ['204_6', '54', '205_5']),
        (r'\lfloor x\rfloor', [r'\left\lfloor x \right\rfloor', '\u230ax\u230b'], [r'\lceil x\rceil', 'x']),
        ('42', [r'\textbf{42}', r'\mathbf{42}', r'\boldsymbol{42}', '**42**', '`42`', r'\underline{42}', '$$42$$', r'\(42\)', r'\displaystyle 42', '{42}', r'\text{42}', '42 .', r'42\,', '\u200b42'], ['24', '4 2', '4.2', '420', '-42', '42,', '042 1', '{4}{2}', r'4\text{ }2'][:5] + [r'4\text{ }2', '4{2}', '41.9999']),
    ],
}  # yapf: disable

# Gold answers that nothing can meet, and others that only look so.
REFUSED = ['1/0', r'\frac{1}{0}', r'\frac{5}{0.0}', 'nan', 'NaN', 'null', 'N/A', '?', r'\frac{1}{', '3 4', '5 3', '1 2 3', '-', '...', '3.14...', r'\tan(\pi/2)', r'\ln 0', r'5 \& \foo', r'\sqrt{', '0/0', r'3 \frac{7}{2}', 'x+', '2,,3', r'\frac{x}{0}', '3+*4']  # yapf: disable
READABLE = ['0', '0/5', r'\infty', r'-\infty', r'\varnothing', 'none', 'undefined', 'Paris', '1e6', '10 000', '3 1/2', r'n \equiv 1 \mod 4', "f'(x)=2x", '1,1,2', '50 people', '5 m/s', 'C(10,3)', '0.333...', 'sin(x)', r'\ln 2', '1/0.5', 'x/y', r'\{\}', '(1,2]', r'1,2,\ldots,10', 'x^2+1=0', '10/05', r'\frac{0}{3}', '1.0/10', r'\pm 2', '3 mod 7', r'\text{DNE}', r'$50\%$', r'(-\infty,2)\cup(3,4)', r'\begin{pmatrix}1\\2\end{pmatrix}']  # yapf: disable

# Of choices and texts: (gold, right texts, wrong texts), as they are.
CHOICE = [
    ('C', ['Answer: **C**.', 'So the answer is C.', 'The answer is (C).', r'so \boxed{42} J.' + '\nAnswer: C', r'\boxed{\textbf{(C)}\ 42}', r'\boxed{\textbf{C}}', r'\boxed{\text{(C)}}', r'\boxed{\mathrm{C}}', r'\boxed{\mathbf{(C)}\ 42}', r'\boxed{\text{C. } 42}', r'\boxed{(C)\ \frac{1}{2}}', r'\boxed{\textbf{(C) } 42}', r'\boxed{Option C}', r'\boxed{\text{Option C}}', r'\boxed{\text{C: Paris}}', r'\boxed{C.\ 42}', r'\boxed{[C]}', r'\boxed{ c }', r'\boxed{\boldsymbol{C}}', r'\boxed{\left(C\right)}', r'\boxed{$C$}', r'\boxed{C \quad 42}', r'\boxed{\textbf{(C)}~42}', r'\boxed C', r'$\boxed{\text{\textbf{(C)}}}$', '**Final Answer:** C', '**Answer: C**', 'Answer: C) 42', 'Answer: $C$', r'Answer: \(C\)', r'Answer: \textbf{(C)}', 'Therefore, the correct answer is option C.', 'The correct option is C.', 'The correct choice is (C).', 'the answer is **C**', 'The answer is C because it fits.', 'The answer is C, not B.', 'The answer is: C', 'ANSWER: C', 'Answer - B\nno.\nAnswer: C', 'Answer\uff1aC', 'Answer: \uff23', 'Answer: C\r\n', '### Answer: C', 'The final answer is $\\boxed{C}$.', 'The answer is C: 42.', 'Answer: `C`', 'Answer: "C"', 'Answer: [C]', 'Answer: C. Paris', 'Answer: {C}', 'My answer is C!'], ['The answer is B, not C.', 'Answer: B', 'The answer is B or C.', 'The answer is B and C.', 'Answer: B, C', 'The answer is either B or C.', 'I like C', 'Answer: C\n' + r'\boxed{B}', r'\boxed{B, C}', r'\boxed{B \text{ or } C}', r'\boxed{\textbf{(B)}\ C}', 'Answer: C\nAnswer: B', 'The answer is not C.', r'\boxed{\text{Cat}}', 'The answer is Cat.', r'\boxed{CC}', r'\boxed{C or B}', r'\boxed{C, B}', 'Answer: C or B', 'Answer: C/B', r'<think>The answer is C.</think> The answer is B.', 'The answer is unclear. C', 'C is what the answer would be if B were wrong. Answer: B', r'\boxed{A, B, C}', 'Answer: all of A, B, C', r'\boxed{\text{A) 3, B) 4, C) 5}}', 'The answer is C-3PO.'][:-1]),
    ('A', ['The answer is A.', 'Answer: A', r'\boxed{A}', 'answer: (a)', 'The answer is (A) 7'], ['The answer is a number.', 'The answer is a bit of C.', 'Answer: An apple', 'The answer is B. A is wrong.', r'\boxed{a number}', 'A', 'The answer is A or B.']),
    ('B', [r'\boxed{\textbf{(B)}}', 'Answer: B', 'the answer is B. So done.'], [r'\boxed{8}', r'\boxed{\beta}', 'Answer: 8', r'\boxed{D}', 'The answer is D']),
    (r'\textbf{(D)}\ 12', [r'\boxed{D}', 'Answer: D', r'\boxed{\textbf{(D)}\ 12}'], [r'\boxed{12}', r'\boxed{E}', r'\boxed{\textbf{(E)}\ 12}']),
]  # yapf: disable
TEXT = [
    (r'A \rightarrow B', [r'\boxed{A \to B}', r'\boxed{A \rightarrow B}', '\\boxed{A\u2192B}', r'\boxed{A -> B}', r'\boxed{$A\rightarrow B$}'], [r'\boxed{A \leftarrow B}', r'\boxed{B \rightarrow A}', r'\boxed{A \leftrightarrow B}', r'\boxed{AB}', r'\boxed{A \Rightarrow B}', r'\boxed{A \gets B}']),
    ('Paris', [r'\boxed{\text{Paris}}', r'\boxed{\textbf{Paris}}', r'\boxed{\mathrm{Paris}}', r'\boxed{Paris.}', r'\boxed{ Paris }', r'\boxed{**Paris**}', r'\boxed{\textit{Paris}}', r'\boxed{\text{ Paris}}'], [r'\boxed{London}', r'\boxed{\text{Pariss}}', 'Paris', r'\boxed{\text{not Paris}}', r'\boxed{Paris, London}']),
    ('5', [r'\boxed{5.0}', r'\boxed{\text{5}}', r'\boxed{ 5 }', r'\boxed 5'], [r'\boxed{6}', r'\boxed{5 5}', r'\boxed{-5}', r'\boxed{3+2}']),
    (r'\text{left}', [r'\boxed{left}'], [r'\boxed{right}', r'\boxed{\left}', r'\boxed{}']),
    (r'\leftarrow', [r'\boxed{\gets}', '\\boxed{\u2190}'], [r'\boxed{\rightarrow}', r'\boxed{arrow}']),
]  # yapf: disable
BOXES = [
    ('5', [r'\boxed{3} no, $\boxed 5$', r'\boxed5', r'\boxed 5', r'$\boxed{5}$', r'\fbox{5}', r'\boxed{\boxed{5}}', r'\boxed{ 5}', r'\boxed{3}. Wait: \boxed 5.'], [r'\boxed 3', r'$\boxed 5$ no, \boxed{3}', r'\boxed', r'5', r'\boxed{3} or \boxed 5', r'\boxed 55', r'\boxed{3}, \boxed{5}']),
    ('42', [r'\boxed 42', r'$\boxed{42}$', r'\boxed -42 no \boxed 42'], [r'\boxed -42', r'\boxed 4', r'\boxed{4}2']),
    ('x', [r'\boxed x', r'\boxed{x}'], [r'\boxed y', r'\boxedx']),
]  # yapf: disable


def rows():
  """Yields (kind, grader, gold, text, right)."""
  for kind, entries in MATH.items():
    for gold, right, wrong in entries:
      for answers, ok in ((right, True), (wrong, False)):
        for answer in answers:
          yield kind, 'math', gold, rf'so \boxed{{{answer}}}.', ok
  for kind, grader, entries in (('choices', 'choice', CHOICE),
                                ('texts', 'text', TEXT), ('boxes', 'math',
                                                          BOXES)):
    for gold, right, wrong in entries:
      for answers, ok in ((right, True), (wrong, False)):
        for text in answers:
          yield kind, grader, gold, text, ok
