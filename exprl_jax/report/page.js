'use strict';
// Text reaches the page by textContent only: traces are written by a model.

const read = (id) => JSON.parse(document.getElementById(id).textContent);

function element(name, className, text) {
  const out = document.createElement(name);
  if (className) out.className = className;
  if (text !== undefined) out.textContent = text;
  return out;
}

// Plots.

const figures = read('figures-data');
const dark = window.matchMedia('(prefers-color-scheme: dark)');
const hidden = new Set();

function layout(figure) {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const axis = {gridcolor: color('--line'), zerolinecolor: color('--line'),
                automargin: true};
  return {
    paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
    font: {color: color('--text'), size: 12},
    margin: {l: 48, r: 8, t: 28, b: 40},
    modebar: {bgcolor: 'rgba(0,0,0,0)', color: color('--grey'),
              orientation: 'v'},
    xaxis: {...axis, title: {text: 'step'}},
    yaxis: {...axis, title: {text: figure.unit}, rangemode: 'tozero'},
    legend: {orientation: 'h', x: 0, y: 1, yanchor: 'bottom',
             font: {size: 11}}, hovermode: 'x unified',
    showlegend: figure.data.filter((d) => d.showlegend !== false).length > 1,
  };
}

function draw() {
  for (const figure of figures) {
    const data = figure.data.map((line) => (
        {...line, visible: hidden.has(line.legendgroup) ? 'legendonly' : true}));
    Plotly.react(figure.drawing, data, layout(figure), {
      responsive: true, displaylogo: false,
      modeBarButtonsToRemove: ['select2d', 'lasso2d', 'zoomIn2d', 'zoomOut2d',
                               'autoScale2d', 'pan2d', 'zoom2d'],
      toImageButtonOptions: {format: 'svg', filename: figure.title},
    });
  }
}

for (const figure of figures) {
  const plot = element('div', 'plot');
  plot.append(element('h3', '', figure.title));
  figure.drawing = element('div', 'drawing');
  plot.append(figure.drawing);
  if (figure.note) plot.append(element('p', 'note', figure.note));
  document.getElementById('plots').append(plot);
}
draw();
for (const figure of figures) {
  figure.drawing.on('plotly_legendclick', (event) => {
    const name = event.data[event.curveNumber].legendgroup;
    if (!hidden.delete(name)) hidden.add(name);
    draw();
    return false;
  });
}
dark.addEventListener('change', draw);
window.addEventListener('beforeprint', draw);
window.addEventListener('afterprint', draw);

// Traces.

const steps = read('traces-data');
const input = (id) => document.getElementById(id);

function number(value, digits, sign) {
  if (value === null || value === undefined) return '–';
  return (sign && value >= 0 ? '+' : '') + value.toFixed(digits);
}

function shade(advantage, largest) {
  if (!advantage) return '';
  const strength = 0.05 + 0.3 * Math.min(1, Math.abs(advantage) / largest);
  return `rgba(${advantage > 0 ? '40,160,70' : '210,60,50'},${strength})`;
}

function show(trace, largest, spoilers) {
  const out = element('div', 'trace');
  const head = element('div');
  head.append(element('bdi', 'question', trace.question), ' ');
  const verdicts = {true: ['good', 'right answer'], false: ['bad', 'wrong answer'],
                    null: ['grey', 'answer not graded']};
  head.append(element('b', ...verdicts[String(trace.correct)]), ' ');
  if (trace.end === 'length') {
    head.append(element('b', 'bad', 'cut off by the budget'), ' ');
  }
  head.append(element('span', 'grey', `${trace.id} · score ` +
      `${number(trace.score, 2)} · ${trace.length ?? '?'} tokens`));
  out.append(head);
  for (const [text, score, advantage] of trace.steps) {
    const row = element('div', 'step');
    row.style.background = shade(advantage, largest);
    const code = element('code');
    code.append(element('bdi', '', text));
    row.append(code, element('span', 'num', number(score, 2)),
               element('span', 'num', number(advantage, 2, true)));
    out.append(row);
  }
  if (spoilers && (trace.reference || trace.gold)) {
    out.append(element('div', 'spoiler',
                       `${trace.reference}\ngold answer: ${trace.gold}`));
  }
  return out;
}

function list() {
  const step = steps.find((s) => String(s.step) === input('step').value);
  const text = input('text').value.toLowerCase();
  const low = parseFloat(input('low').value);
  const high = parseFloat(input('high').value);
  const found = step.traces.filter((t) =>
      (!input('answer').value || String(t.correct) === input('answer').value) &&
      !(t.score < low) && !(t.score > high) &&
      [t.id, t.question, ...t.steps.map((s) => s[0])].some(
          (x) => x.toLowerCase().includes(text)));
  const sizes = step.traces.flatMap((t) => t.steps.map((s) => Math.abs(s[2] || 0)));
  const largest = Math.max(1e-9, ...sizes);
  input('count').textContent = `${found.length} of ${step.traces.length} traces`;
  input('traces').replaceChildren(
      ...found.map((t) => show(t, largest, input('spoilers').checked)));
}

if (steps.length) {
  input('browser').hidden = false;
  for (const s of steps) input('step').append(element('option', '', s.step));
  input('step').value = steps[steps.length - 1].step;
  // report.html#step=10&answer=false&text=apples shows these.
  for (const [id, value] of new URLSearchParams(location.hash.slice(1))) {
    if (id === 'spoilers') input(id).checked = true;
    else if (input(id)) input(id).value = value;
  }
  for (const id of ['step', 'answer', 'low', 'high', 'text', 'spoilers']) {
    input(id).addEventListener('input', list);
  }
  list();
}
