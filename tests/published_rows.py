"""Rows with the fields of published data sets; the problems are our own."""

import base64
import json
import pickle
import zlib

GSM8K = [{
    'question': 'Ann has 12 pens and buys 3 packs of 4. How many are there?',
    'answer': 'The packs have 3*4=<<3*4=12>>12 pens.\n'
    'In all, 12+12=<<12+12=24>>24 pens.\n#### 24'
}, {
    'question': 'A car costs $1,200 and a van twice that. How much is it?',
    'answer': 'A van costs 2*$1,200=$<<2*1200=2400>>2,400.\n#### 2,400'
}]

MATH = [
    {
        'problem': 'What is $\\frac13+\\frac16$?', 'level': 'Level 1',
        'type': 'Prealgebra',
        'solution': 'First $\\boxed{x}$. Then $\\frac26+\\frac16=\\frac36$, '
        'so it is $\\boxed{\\frac{1}{2}}$.'
    },
    {  # MATH-500
        'problem': 'Find the roots of $x^2=1$.', 'answer': '-1,1',
        'solution': 'They are $\\boxed{-1,1}$.', 'subject': 'Algebra',
        'level': 1, 'unique_id': 'test/algebra/1.json'
    }
]

NUMINA = [
    {
        'problem': 'Compute $2^{10}$.', 'solution': '$2^{10}=\\boxed{1024}$',
        'answer': '1024', 'problem_type': 'Algebra',
        'question_type': 'math-word-problem', 'problem_is_valid': 'Yes',
        'solution_is_valid': 'Yes', 'source': 'olympiads', 'synthetic': False
    },
    {
        'problem': 'Which is prime? (A) 4 (B) 5 (C) 6',
        'solution': 'Only 5 is prime, so $\\boxed{B}$.', 'answer': 'B',
        'problem_type': 'Number Theory', 'question_type': 'MCQ',
        'problem_is_valid': 'Yes', 'solution_is_valid': 'Yes',
        'source': 'amc_aime', 'synthetic': False
    },
    {  # NuminaMath-CoT
        'source': 'orca_math', 'problem': 'What is $7 \\cdot 8$?',
        'solution': 'It is $\\boxed{56}$.',
        'messages': [{'role': 'user', 'content': 'What is $7 \\cdot 8$?'}]
    }
]

OPENR1 = [{
    'problem': 'What is 6 times 7?', 'solution': '$6 \\cdot 7=\\boxed{42}$',
    'answer': '42', 'problem_type': 'Algebra',
    'question_type': 'math-word-problem', 'source': 'olympiads',
    'uuid': '0b5b5e0e-0000-5000-8000-000000000001',
    'is_reasoning_complete': [True], 'generations': ['<think>...</think> 42'],
    'correctness_math_verify': [True], 'correctness_count': 1
}]

DEEPSCALER = [{
    'problem': 'Half of 10?', 'answer': '5',
    'solution': 'It is $\\boxed{5}$, as '
    '$5+5=10$.'
}, {'problem': 'Half of 12?', 'answer': '6', 'solution': ''}]

INT = [{
    'problem': 'What is $1+2+\\dots+100$?', 'answer': '5050', 'source': 'x',
    'reference_solution': 'Pair the terms: $50 \\cdot 101=\\boxed{5050}$.',
    'reference_solution_source': 'human'
}, {
    'problem': 'What is $3^4$?', 'answer': '81', 'solution': '$9^2=\\boxed{81}$'
}]

POPE = [{
    'problem': 'How many subsets has a set of 5?', 'answer': '32',
    'gemini_solution': 'Each element is in or out: $2^5=\\boxed{32}$.'
}, {'problem': 'What is $5!$?', 'answer': '120'}]

COMPETITION = [
    {'question': 'Find the sum of all primes below 10.', 'answer': '17'},
    {
        'problem_idx': 1, 'problem': 'Find $10^2$.', 'answer': 100,
        'problem_type': ['Algebra']
    },
    {
        'id': 0, 'problem': 'Find $11^2$.', 'answer': '121', 'url': 'https://x',
        'solution': '$(10+1)^2=\\boxed{121}$'
    },
    {
        'id': 60, 'problem': 'Find $12^2$.', 'solution': '$\\boxed{144}$',
        'url': 'https://x'
    },
    {
        'ID': '2024-I-1', 'Problem': 'Find $13^2$.', 'Answer': 169,
        'Solution': '$(10+3)^2=169$, \\boxed{169}'
    },
]

ANSWERBENCH = [{
    'Problem ID': 'imo-bench-algebra-001', 'Problem': 'Find all $n$: $n^2=9n$.',
    'Short Answer': '$n=0$ and $n=9$', 'Category': 'Algebra',
    'Subcategory': 'Operation', 'Source': 'X 2021'
}]


def gpqa(record):
  return {
      'Question': f'Which gas does sample {record} give off?',
      'Correct Answer': 'Oxygen\n', 'Incorrect Answer 1': 'Helium',
      'Incorrect Answer 2': 'Argon', 'Incorrect Answer 3': 'Neon',
      'Explanation': 'It supports fire.', 'High-level domain': 'Chemistry',
      'Subdomain': 'Chemistry (general)', 'Record ID': record,
      'Canary String': ''
  }


GPQA = [gpqa('recA'), gpqa('recB')]

SCIKNOWEVAL = [{
    'question': 'What is the mass of water in g/mol?', 'answer': '',
    'type': 'mcq-4-choices', 'domain': 'Chemistry',
    'choices': {'text': ['16', '18', '20', '2'], 'label': ['A', 'B', 'C', 'D']},
    'answerKey': 'B', 'prompt': {'default': 'Choose.'}, 'details': {
        'level': 'L3', 'task': 'molar_weight_calculation', 'subtask': 'x'
    }
}, {
    'question': 'A body falls for 2 s. How fast is it?', 'answer': '19.6 m/s',
    'type': 'open-ended-qa', 'domain': 'Physics',
    'choices': {'text': [],
                'label': []}, 'answerKey': '', 'prompt': {'default': 'Answer.'},
    'details': {'level': 'L4', 'task': 'problem_solving', 'subtask': 'x'}
}]

OLYMPIADBENCH = [{
    'id': 1, 'question': 'Find $x$ with $2x=6$.', 'context': None,
    'solution': ['Halve: $x=3$.'], 'final_answer': ['$3$'], 'image_1': None,
    'is_multiple_answer': False, 'unit': None, 'answer_type': 'Numerical',
    'error': None, 'subject': 'Math', 'language': 'English'
}, {
    'id': 2, 'question': 'Find the speed.', 'context': 'A body falls for 2 s.',
    'solution': ['$v=gt$.'], 'final_answer': ['$19.6$'], 'image_1': None,
    'is_multiple_answer': False, 'unit': 'm/s', 'answer_type': 'Numerical',
    'error': '1e-1', 'subject': 'Physics', 'language': 'English'
}]


def pack(text):
  """As livecodebench packs its private tests."""
  return base64.b64encode(zlib.compress(pickle.dumps(text))).decode()


LIVECODEBENCH = [{
    'question_title': 'Sum',
    'question_content': 'Print the sum of two numbers.', 'platform': 'atcoder',
    'question_id': 'abc000_a', 'contest_id': 'abc000',
    'contest_date': '2024-01-01T00:00:00', 'starter_code': '',
    'difficulty': 'easy', 'public_test_cases': json.dumps([{
        'input': '1 2\n', 'output': '3\n', 'testtype': 'stdin'
    }]), 'private_test_cases': pack(
        json.dumps([{'input': '-5 2\n', 'output': '-3\n',
                     'testtype': 'stdin'}])), 'metadata': '{}'
}]

VERL = [{
    'data_source': 'pope', 'ability': 'math',
    'prompt': [{'role': 'system', 'content': 'Reason.'},
               {'role': 'user', 'content': 'What is 1+1?\n'}],
    'reward_model': {'style': 'rule', 'ground_truth': '2'}, 'extra_info': {
        'index': 0, 'split': 'train', 'question': 'What is 1+1?',
        'solution': 'It is $\\boxed{2}$.', 'answer': '2'
    }
}, {
    'data_source': 'lcb', 'ability': 'Code',
    'prompt': [{'role': 'user', 'content': 'Print the sum of two numbers.'}],
    'reward_model': {
        'style': 'rule', 'ground_truth': json.dumps(
            {'inputs': ['1 2\n'], 'outputs': ['3\n'], 'fn_name': None})
    }, 'extra_info': {'index': 1, 'solution': 'Read and add.'}
}, {
    'data_source': 'sciknoweval', 'ability': 'Science',
    'prompt': [{'role': 'user', 'content': 'Mass of water? A) 16 B) 18'}],
    'reward_model': {'style': 'rule', 'ground_truth': 'B'}, 'extra_info': {
        'index': 2, 'question': 'Mass of water? A) 16 B) 18',
        'solution': '2+16=18.\nFinal Answer: B', 'type': 'mcq-4-choices'
    }
}]

CHAMP = [{
    'identifier': 'P_Example_1',
    '_raw_text': 'Choose 2 of @@n@@. How many ways?',
    '_text': 'Choose 2 of n. How many ways?', 'category': 'Combinatorics',
    'solution': {
        'steps': [{
            '_raw_text': 'First one: @@n@@.', '_text': 'First one: n.',
            'ch_idxs': []
        }, {
            '_raw_text': 'In all @@n(n-1)/2@@.', '_text': 'In all n(n-1)/2.',
            'ch_idxs': [0]
        }]
    }, '_raw_answer': '@@C(n, 2)@@, or equivalently @@n(n-1)/2@@',
    '_answer': 'C(n, 2), or equivalently n(n-1)/2', 'ch_list': [],
    'fws_annotations': {}, 'conversations': {}
}]

ROWS = {
    'aime': COMPETITION, 'champ': CHAMP, 'champ_answered': CHAMP,
    'deepscaler': DEEPSCALER, 'deepscaler_solved': DEEPSCALER[:1], 'gpqa': GPQA,
    'gsm8k': GSM8K, 'hmmt': COMPETITION[1:2], 'imo_answerbench': ANSWERBENCH,
    'int': INT, 'livecodebench': LIVECODEBENCH, 'math': MATH,
    'numina_math': NUMINA, 'olympiadbench': OLYMPIADBENCH,
    'openr1_math': OPENR1, 'pope': POPE, 'sciknoweval': SCIKNOWEVAL,
    'verl': VERL
}
