// The page at /: asks /tasks what the model answers and /predict for the answers.

const $ = (id) => document.getElementById(id);
const SHOWN = 5; // labels of a task before "more"
let tasks = [];
let latest = 0; // number of the newest question; answers to older ones are dropped

/** An element with a class, and children that are elements or texts (never markup). */
function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

/** Content and time of an answer; throws {status, detail, hint} for a refusal. */
async function ask(path, query) {
  const headers = { "Content-Type": "application/json" };
  if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
  const begin = performance.now();
  let response;
  try {
    const body = query && JSON.stringify(query);
    response = await fetch(path, { method: query ? "POST" : "GET", headers, body });
  } catch {
    throw { status: 0, detail: "The service does not answer.", hint: "It may have been stopped." };
  }
  const content = await response.json().catch(() => ({ detail: response.statusText }));
  if (!response.ok) throw { status: response.status, ...content };
  const total = /dur=([\d.]+)/.exec(response.headers.get("Server-Timing") ?? "");
  return { content, ms: performance.now() - begin, serverMs: total && Number(total[1]) };
}

function say(text, hint, isWrong = false) {
  $("status").className = isWrong ? "wrong" : "";
  $("status").replaceChildren(text, ...(hint ? [make("span", "", ` ${hint}`)] : []));
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const milliseconds = (ms) => `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
const isPair = (task) => task.text.length === 2;

function bar(share, className = "") {
  const fill = make("i");
  fill.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
  return make("div", `bar ${className}`, fill);
}

function probabilities(pairs, isFirst) {
  return make("dl", "", ...pairs.map(([label, share], i) => {
    const classes = isFirst && i === 0 ? "pair top" : "pair";
    const shown = make("dd", "percent", percent(share));
    return make("div", classes, make("dt", "", label), make("dd", "", bar(share)), shown);
  }));
}

function card(task, answer) {
  const head = make("header", "", make("h2", "", task.name));
  const box = make("article", "", head);
  if (answer.probs) {
    const sorted = Object.entries(answer.probs).sort((a, b) => b[1] - a[1]);
    head.append(make("span", "answer", answer.label));
    const most = sorted.length > SHOWN + 1 ? SHOWN : sorted.length;
    box.append(probabilities(sorted.slice(0, most), true));
    if (most < sorted.length) {
      const summary = make("summary", "", `${sorted.length - most} more`);
      box.append(make("details", "", summary, probabilities(sorted.slice(most), false)));
    }
  } else if ("value" in answer && task.range) {
    const [low, high] = task.range;
    head.append(make("span", "answer", answer.value.toFixed(2)));
    const ends = make("div", "ends", make("span", "", `${low}`), make("span", "", `${high}`));
    box.append(bar((answer.value - low) / (high - low), "scale"), ends);
  } else {
    box.append(make("code", "", JSON.stringify(answer)));
  }
  return box;
}

function chosen() {
  const names = new Set([...document.querySelectorAll("#tasks input:checked")].map((x) => x.value));
  return tasks.filter((task) => names.has(task.name));
}

/** A second text is asked for where a chosen task reads two. */
function showSecond() {
  const pairs = chosen().filter(isPair).map((task) => task.name);
  $("second-field").hidden = pairs.length === 0;
  $("second-for").textContent = `for ${pairs.join(", ")}`;
}

async function answer() {
  if (!tasks.length) {
    await loadTasks(); // the API key has just been given
    $("first").focus();
    return;
  }
  const [first, second] = [$("first").value, $("second").value];
  const asked = chosen().filter((task) => !isPair(task) || second.trim());
  if (!first.trim() || !asked.length) {
    const missing = first.trim() ? (chosen().length ? "second" : "") : "first";
    say(missing ? `The ${missing} text is empty.` : "No task is chosen.", "", true);
    (missing ? $(missing) : document.querySelector("#tasks input"))?.focus();
    return;
  }
  const number = ++latest;
  $("results").setAttribute("aria-busy", "true");
  try {
    const input = { text: first, text_a: first, text_b: second };
    const names = asked.map((task) => task.name);
    const { content, ms, serverMs } = await ask("/predict", { inputs: [input], tasks: names });
    if (number !== latest) return;
    const output = content.outputs[0];
    $("answers").replaceChildren(...asked.map((task) => card(task, output[task.name])));
    const left = chosen().length - asked.length;
    const times = `${milliseconds(ms)}, ${milliseconds(serverMs)} of them in the service`;
    const notes = [
      output.truncated ? "A text is longer than the model reads: it saw only the beginning." : "",
      left ? `${left} more with a second text.` : "",
    ];
    const count = `${asked.length} ${asked.length === 1 ? "task" : "tasks"}`;
    say(`${count}, one encoder pass: ${times}.`, notes.filter(Boolean).join(" "));
    if ($("results").getBoundingClientRect().top > 0.6 * innerHeight) {
      $("results").scrollIntoView(); // on a phone they stand below the form
    }
  } catch (error) {
    if (number === latest) refuse(error);
  } finally {
    if (number === latest) $("results").setAttribute("aria-busy", "false");
  }
}

function refuse(error) {
  if (error.status === undefined) throw error;
  say(error.detail, error.hint, true);
  if (error.status === 401) {
    $("key-field").hidden = false;
    $("key").focus();
  }
}

async function loadTasks() {
  const { content } = await ask("/tasks");
  tasks = content.tasks;
  $("run").textContent = content.run;
  document.title = `${content.run}: Outshine`;
  $("tasks").replaceChildren(...tasks.map((task) => {
    const box = make("input");
    Object.assign(box, { type: "checkbox", value: task.name, checked: true });
    return make("label", "", box, task.name);
  }));
  showSecond();
  say("The answers appear here.");
}

async function begin() {
  try {
    await loadTasks();
  } catch (error) {
    refuse(error);
    if (error.status === 503) setTimeout(begin, 1000); // the model is being loaded
  }
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  answer().catch(refuse);
});
$("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    $("form").requestSubmit();
  }
});
$("tasks").addEventListener("change", showSecond);
begin();
