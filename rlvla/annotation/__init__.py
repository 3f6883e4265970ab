"""The embodied chain-of-thought engine: from an expert's decisions to annotated demonstrations.

    take -> timeline -> query -> reply -> checks -> verdict -> demonstrations -> data set, card, contact sheet
    sources key_frames  rounds   openai_annotator,  the judge  run               store    card  contact_sheet
                                 annotators   checks, course

`run.py` strings them together over many takes.
"""
