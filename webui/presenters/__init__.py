"""Rows of a call turned into what the templates show. Pure: no queries, no clock, no request.

Templates only lay out; which words, tones and figures they lay out is decided (and tested) here.
"""
