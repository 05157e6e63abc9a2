"""The report's style sheet: one column on a phone, light and dark by the reader's own setting."""

STYLE = """
:root { color-scheme: light dark; --paper: #f6f7f9; --card: #ffffff; --ink: #1b2430; --soft: #5c6875; --line:
  #dfe4ea; --grid: #e9edf1; --accent: #1f5fc4; --bad: #b42318; --bad-paper: #fdf0ee; --heat: 31, 95, 196; --c0:
  #1f6fd6; --c1: #d9590b; --c2: #0a8a63; --c3: #b0249b; --c4: #8f7100; --c5: #6741d9; --c6: #c2272d; --c7: #54606c }
@media (prefers-color-scheme: dark) {
  :root { --paper: #11151a; --card: #191f26; --ink: #e6eaef; --soft: #9aa7b4; --line: #2c3540; --grid: #252d36;
    --accent: #7fb0ff; --bad: #ff9b8f; --bad-paper: #2c1b1a; --heat: 90, 155, 255; --c0: #6ba7ff; --c1: #ff9a4d;
    --c2: #3ccf9a; --c3: #f078dd; --c4: #e3bf3a; --c5: #a994ff; --c6: #ff7f7f; --c7: #a9b5c0 }
}
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "DejaVu Sans", sans-serif }
.page { max-width: 1240px; margin: 0 auto; padding: 28px 20px 60px }
header h1 { margin: 0; font-size: 28px; line-height: 1.2; letter-spacing: -.01em; overflow-wrap: anywhere }
header p { margin: 6px 0 0; color: var(--soft) }
h2 { margin: 40px 0 12px; font-size: 19px; letter-spacing: -.005em }
h3 { margin: 0; font-size: 14px; font-weight: 600 }
.note { margin: 6px 0 12px; color: var(--soft); font-size: 13.5px; max-width: 78ch }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(138px, 1fr)); gap: 10px; margin: 20px 0 0 }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 10px 14px }
.tile b { display: block; font-size: 22px; font-weight: 600; line-height: 1.25; font-variant-numeric: tabular-nums }
.tile span { color: var(--soft); font-size: 12.5px }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; margin: 0;
  min-width: 0 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums }
th, td { padding: 7px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 500; font-size: 12.5px; vertical-align: bottom }
tr > :first-child { text-align: left }
th { white-space: normal; min-width: 52px; max-width: 150px; line-height: 1.35 }
tbody th { white-space: nowrap }
.below { margin-top: 14px }
td.text { text-align: left; white-space: normal; overflow-wrap: anywhere }
tbody tr:last-child > * { border-bottom: 0 }
td .then { color: var(--soft) }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 350px), 1fr)); gap: 14px }
.charts.four { grid-template-columns: repeat(auto-fill, minmax(min(100%, 470px), 1fr)) }
figure { margin: 0 }
figcaption { display: flex; flex-wrap: wrap; gap: 2px 14px; align-items: baseline; margin-bottom: 6px }
.legend { display: flex; flex-wrap: wrap; gap: 0 12px; font-size: 12.5px; color: var(--soft); font-variant-numeric:
  tabular-nums }
.legend svg { width: 20px; height: 8px; margin-right: 5px; vertical-align: middle }
.legend b { color: var(--ink); font-weight: 500 }
.chart svg { display: block; width: 100%; height: auto }
.chart .legend svg { display: inline; width: 20px; height: 8px }
.chart .aside { color: var(--soft); font-size: 12px; margin: 4px 0 0 }
svg text { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: var(--soft) }
.grid { stroke: var(--grid); fill: none }
.axis { stroke: var(--soft); fill: none; opacity: .6 }
.floor { stroke: var(--ink); stroke-dasharray: 6 4; stroke-width: 1.3; fill: none; opacity: .75 }
.line { fill: none; stroke: currentColor; stroke-width: 1.9; stroke-linejoin: round; stroke-linecap: round }
.faint { opacity: .28; stroke-width: 1 }
.dot { fill: currentColor }
.bubble { fill: currentColor; opacity: .82 }
.d1 { stroke-dasharray: 7 4 }
.d2 { stroke-dasharray: 1.5 4 }
.line.faint { stroke-dasharray: none }
.c0 { color: var(--c0) }
.c1 { color: var(--c1) }
.c2 { color: var(--c2) }
.c3 { color: var(--c3) }
.c4 { color: var(--c4) }
.c5 { color: var(--c5) }
.c6 { color: var(--c6) }
.c7 { color: var(--c7) }
.dense { font-size: 13px }
.dense th, .dense td { padding: 6px 5px; min-width: 0 }
.four svg text { font-size: 8.5px }
.key { margin-top: 20px }
.key .legend { font-size: 13.5px; gap: 3px 18px }
h3.over { margin: 18px 0 8px }
.switch { display: inline-flex; border: 1px solid var(--line); border-radius: 8px; overflow: hidden; background:
  var(--card) }
.switch label { padding: 5px 14px; cursor: pointer; font-size: 13.5px; color: var(--soft) }
.choice { position: absolute; opacity: 0; pointer-events: none }
.by-time { display: none }
#by-time:checked ~ .page .by-time { display: block }
#by-time:checked ~ .page .by-steps { display: none }
#by-steps:checked ~ .page label[for=by-steps], #by-time:checked ~ .page label[for=by-time] { background:
  var(--accent); color: var(--card) }
#by-steps:focus-visible ~ .page .switch, #by-time:focus-visible ~ .page .switch { outline: 2px solid var(--accent);
  outline-offset: 2px }
.bar { display: flex; flex-wrap: wrap; gap: 4px 16px; align-items: center; margin: 40px 0 12px }
.bar h2 { margin: 0 }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 250px), 1fr)); gap: 14px;
  align-items: start }
.pictures img { display: block; width: 100%; height: auto; border-radius: 6px }
.pictures figcaption { margin: 0 0 8px; font-size: 13.5px; color: var(--soft) }
.pictures figcaption b { color: var(--ink); font-weight: 600 }
.pictures .reals { border-color: var(--accent) }
.bubbles { max-width: none; height: auto }
.heat td { background: rgba(var(--heat), calc(var(--share, 0) * .42)) }
ul.faults { margin: 0; padding-left: 20px }
.bad { background: var(--bad-paper); border-color: var(--bad) }
.bad h3 { color: var(--bad); margin-bottom: 4px }
pre { margin: 0; overflow-x: auto; font: 12.5px/1.55 ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono",
  monospace }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 14px;
  align-items: start }
footer { margin-top: 40px; color: var(--soft); font-size: 12.5px }
@media (max-width: 520px) {
  .page { padding: 18px 12px 40px }
  header h1 { font-size: 23px }
  h2 { margin-top: 30px }
  .card { padding: 10px }
  .tile b { font-size: 19px }
  th, td { padding: 6px 8px }
  .pictures { grid-template-columns: repeat(2, 1fr); gap: 8px }
}
@media print { .switch { display: none } body { background: #fff } .card { break-inside: avoid } }
"""
