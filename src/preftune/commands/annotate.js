"use strict";
// Texts of models and data are only ever set as text, never as markup.
const at = (id) => document.getElementById(id);
let question = null;
let busy = false;

function show(state) {
  question = state.question;
  at("count").textContent = `${state.done} of ${state.total} judged by ${state.annotator}`;
  at("progress").value = state.total ? state.done / state.total : 0;
  at("question").hidden = question === null;
  at("done").hidden = question !== null;
  at("prompt").textContent = question ? question.prompt : "";
  at("left-text").textContent = question ? question.left : "";
  at("right-text").textContent = question ? question.right : "";
  at("agreement").textContent = state.agreement;
}

async function call(path, body) {
  if (busy) return;
  busy = true;
  try {
    const options = body === undefined ? {} : {
      method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body),
    };
    const answer = await fetch(path, options);
    if (!answer.ok) throw new Error(await answer.text());
    show(await answer.json());
    at("problem").textContent = "";
  } catch (error) {
    at("problem").textContent = `Not saved: ${error.message}`;
  } finally {
    busy = false;
  }
}

function judge(choice) {
  if (question) call("/judge", {question: question.id, choice});
}

const actions = {
  "1": () => judge("left"), "ArrowLeft": () => judge("left"),
  "2": () => judge("right"), "ArrowRight": () => judge("right"),
  "0": () => judge("tie"), "s": () => judge("skip"),
  "u": () => call("/undo", {}), "Backspace": () => call("/undo", {}),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const action = actions[event.key] || actions[event.key.toLowerCase()];
  if (action) { event.preventDefault(); action(); }
});
for (const choice of ["left", "right", "tie", "skip"]) at(choice).addEventListener("click", () => judge(choice));
at("undo").addEventListener("click", () => call("/undo", {}));
call("/state");
