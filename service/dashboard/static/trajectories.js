// The list of trajectories by keyboard.

const links = [...document.querySelectorAll("#pairs tbody a.badge")];

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
  const step = { j: 1, k: -1 }[event.key];
  if (!step || links.length === 0) return;
  const at = links.indexOf(document.activeElement);
  links[Math.max(0, Math.min(links.length - 1, at < 0 ? 0 : at + step))].focus();
  event.preventDefault();
});
