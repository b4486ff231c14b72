// Runs once for the chat (Gradio's js_on_load: `element`, `trigger` are given). Pointing at a word, with a mouse, a
// finger or the tab key, shows its phrase's mask here at once; its attention is asked for ("point").
let asked = null, timer = null

const picture = () => document.querySelector("#gw-stage .gw-picture")

function show(word) {
  const stage = picture()
  if (!stage) return
  const turn = word ? word.dataset.turn : stage.dataset.last
  const phrase = word ? word.dataset.phrase : "-1"
  const spots = [...stage.querySelectorAll(`.gw-spot[data-turn="${turn}"][data-phrase="${phrase}"]`)]
  stage.querySelectorAll(".gw-fill, .gw-spot").forEach(layer => layer.classList.remove("gw-on"))
  const fills = [...stage.querySelectorAll(`.gw-fill[data-turn="${turn}"]`)]
  const on = spots.length ? spots : fills
  on.forEach(layer => layer.classList.add("gw-on"))
  stage.classList.toggle("gw-marked", !spots.length && fills.length > 0)
  const caption = stage.parentElement.querySelector("figcaption")
  caption.textContent = (word && word.dataset.label) || caption.dataset.rest
}

function here(word) {
  element.querySelectorAll(".gw-here").forEach(each => each !== word && each.classList.remove("gw-here"))
  if (word) word.classList.add("gw-here")
  show(word)
  clearTimeout(timer)
  const name = word && `${word.dataset.turn} ${word.dataset.word}`
  if (!word || name === asked) return
  timer = setTimeout(() => {
    asked = name
    trigger("point", { turn: Number(word.dataset.turn), word: Number(word.dataset.word) })
  }, 50)
}

const wordOf = event => event.target.closest && event.target.closest(".gw-word")
for (const kind of ["pointerover", "focusin", "click"])
  element.addEventListener(kind, event => { const word = wordOf(event); if (word) here(word) })
element.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") here(null) })
element.addEventListener("focusout", event => { if (!element.contains(event.relatedTarget)) here(null) })

// What the server sends anew (another answer, another λ, masks before refinement) is shown as the old was.
new MutationObserver(records => {
  if (records.every(record => record.target.closest("figcaption"))) return  // written here
  asked = null
  show(element.querySelector(".gw-here"))
}).observe(document.getElementById("gw-stage"), { childList: true, subtree: true, attributeFilter: ["src"] })

const box = document.getElementById("gw-chat-box")
new MutationObserver(() => { box.scrollTop = box.scrollHeight }).observe(element, { childList: true, subtree: true })
show(null)
