// Marks a text that an address asks for: #text=words.

// Mark the first place of `text` in a group of elements, whose texts are read as one; return the marked range.
function mark(text, elements) {
  const nodes = [];
  let whole = "";
  for (const one of elements) {
    const walker = document.createTreeWalker(one, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      nodes.push([whole.length, walker.currentNode]);
      whole += walker.currentNode.data;
    }
  }
  const start = whole.indexOf(text);
  if (start < 0) return null;
  const place = (offset) => {
    const [before, node] = nodes.findLast(([begins]) => begins <= offset);
    return [node, offset - before];
  };
  const range = new Range();
  range.setStart(...place(start));
  range.setEnd(...place(start + text.length));
  CSS.highlights?.set("asked", new Highlight(range));
  return range;
}

// Highlight the text that the address asks for, in the first group of elements that has it. Returns null if none is
// asked for, false if it is nowhere, else the element in which it begins.
export function highlightAsked(...groups) {
  CSS.highlights?.delete("asked");
  const text = new URLSearchParams(location.hash.slice(1)).get("text");
  if (!text) return null;
  for (const elements of groups) {
    const found = mark(text, elements)?.startContainer.parentElement;
    if (!found) continue;
    for (let box = found.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
    return found;
  }
  return false;
}
