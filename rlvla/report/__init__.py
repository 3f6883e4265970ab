"""Pages to look at: what a run or a data set holds goes in, one HTML or Markdown file that loads nothing comes out.

The templates say what a page looks like, the modules beside them what is on it.
"""
