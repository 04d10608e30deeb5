"""Sixty strings that come alive in some sink that is careless with them (faults.md, 5K)."""

PAYLOADS = [
    # HTML, scripts, templates
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</script><script>alert(1)</script>", "<b>bold</b>",
    "<svg/onload=alert(1)>", "' onmouseover='alert(1)", "<!-- comment", "]]>", "&lt;b&gt;", "&#60;script&#62;", "</td></table>",
    "{{7*7}}", "{% include '/etc/passwd' %}", "${7*7}", "<%= 7*7 %>", "#{7*7}",
    # addresses
    "javascript:alert(1)", "http://example.org/x", "www.example.org", "someone@example.org", "<http://example.org>", "file:///etc/passwd",
    # spreadsheets
    "=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "=1+1", "\t=1+1", "\r=1+1", " =1+1", '=HYPERLINK("http://x")', '",=1+1',
    # LaTeX
    "\\input{/etc/passwd}", "\\write18{ls}", "$\\frac{1$", "50% & #1_a^b~c{}", "\\\\", "[2cm]", "*", "(lr)",
    "^^M\\relax", "}\\end{tabular}",
    # Markdown
    "a|b|c", "[x](javascript:alert(1))", "![x](http://example.org/x.png)", "`id`", "* _ * ~~x~~", "[x]: http://example.org", "# head",
    "---", "\\|",
    # names
    "_hidden", "two\nlines", "\u202eevil", "\x1b[31mred\x1b[0m", "\x9b31mred", "nul\x00l", "x" * 10_000, "é日本語", "🎲",
]  # fmt: skip
assert len(PAYLOADS) == len(set(PAYLOADS)) == 60, len(PAYLOADS)
