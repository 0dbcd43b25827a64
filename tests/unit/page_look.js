// Returns what is wrong with what a page shows; run inside it by browser.py.
(() => {
  const wrong = [], root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) wrong.push(`scrolls sideways: ${root.scrollWidth} in ${root.clientWidth}`);
  const parse = text => {
    const n = text.match(/[\d.]+/g).map(Number);
    return text.startsWith('color(') ? [n[0] * 255, n[1] * 255, n[2] * 255, n[3] ?? 1] : [n[0], n[1], n[2], n[3] ?? 1];
  };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const paper = node => {
    for (let at = node; at; at = at.parentElement) {
      const found = parse(getComputedStyle(at).backgroundColor);
      if (found[3] === 1) return found;
      if (found[3] > 0) wrong.push(`half transparent: ${at.tagName}`);
    }
    return [255, 255, 255, 1];
  };
  for (const node of document.body.querySelectorAll('*')) {
    if (![...node.childNodes].some(c => c.nodeType === 3 && c.data.trim()) || !node.checkVisibility()) continue;
    const style = getComputedStyle(node), inside = node.closest('svg');
    const ink = parse(inside && style.fill !== 'none' ? style.fill : style.color);
    let under = paper(node);
    if (inside) {  // what is drawn before it and lies under its middle
      const at = node.getBoundingClientRect(), x = at.x + at.width / 2, y = at.y + at.height / 2;
      for (const shape of inside.querySelectorAll('path, rect, text')) {
        if (shape === node) break;
        const fill = getComputedStyle(shape).fill, box = shape.getBoundingClientRect();
        if (shape.tagName !== 'text' && fill.includes('(') && !fill.startsWith('url') && box.x < x && x < box.right && box.y < y && y < box.bottom && parse(fill)[3] === 1) under = parse(fill);
      }
    }
    const [a, b] = [light(ink), light(under)].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) wrong.push(`pale: ${node.tagName}.${inside ? "" : node.className} '${node.textContent.slice(0, 40)}' ${((a + .05) / (b + .05)).toFixed(2)}`);
  }
  for (const svg of document.querySelectorAll('svg')) {
    const box = svg.getBoundingClientRect();
    const drawn = [...svg.querySelectorAll('path, use, rect, text')].filter(e => e.getBoundingClientRect().width > 0);
    if (box.width < 100 || box.height < 50 || drawn.length < 10) wrong.push(`not drawn: ${svg.getAttribute('aria-label')}`);
  }
  for (const box of document.querySelectorAll('*'))
    if (box.scrollWidth > box.clientWidth + 1 && ['auto', 'scroll'].includes(getComputedStyle(box).overflowX) && box.tabIndex < 0)
      wrong.push(`scrolls, but not by keyboard: ${box.tagName}.${box.className}`);
  return wrong;
})()
