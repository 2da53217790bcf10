"""GPT-X layers.

Shapes are written with one alphabet everywhere:

    b  sequences in a micro-batch        m  hidden size
    s  query positions                   f  inner width of a feed-forward
    t  key positions (t == s in training) v  vocabulary size
    h  attention heads                   d  head width, m / h
"""
