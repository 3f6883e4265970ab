"""The embodied chain-of-thought engine: from an expert's decisions to annotated demonstrations.

    take -> timeline -> queries -> replies -> checks -> demonstrations -> store -> data set, card, contact sheet
            key_frames  rounds     openai_annotator,       rounds          store   card   contact_sheet
                                   plugins         checks, course

`run.py` strings them together over many takes.
"""
