"""Sixty names that are legal to give, and that some sink takes for more than a name (docs/reliability.md, K)."""

PAYLOADS = [
    "<script>", "</script><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "<svg/onload=alert(1)>", "<!--", "-->",
    "&lt;b&gt;", "&", "'", '"', "javascript:alert(1)", "data:text/html,<b>", "{{7*7}}", "{% include 'x' %}", "${7*7}", "#{7*7}",
    "=cmd|' /C calc'!A0", "=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "|pipe|", "a,b", "a;b", '"a","b"', "two\nlines",
    "\\input{/etc/passwd}", "\\write18{ls}", "%", "_", "_hidden", "__", "$", "$x$", "$\\frac{1$", "$5 to $10", "#", "~", "^",
    "`code`", "[x](javascript:alert(1))", "![x](y)", "**bold**", "# title", "[/red]", "[bold]x", "\\", "\x1b[31mred", "\x00nul",
    "\u202eright to left", "\u200b", "x" * 10_000, "中文", "日本語", "🙂", "e\u0301\u0302\u0303", "\udcff", "",
]  # fmt: skip
