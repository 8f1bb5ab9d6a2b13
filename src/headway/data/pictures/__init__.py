"""Rows with pictures: from files to conversations whose pictures are decoded when they are used."""

from headway.data.pictures.images import ENDINGS, Picture, Reading, decoded, named, pages
from headway.data.pictures.load import ImageExample, ImageSplits, Measures, prepare_images
from headway.data.pictures.prompt import PromptWriter, chosen_template
from headway.data.pictures.records import ImageRow, picture_of, question, recognise
from headway.data.pictures.section import ImageData

__all__ = [
    "ENDINGS",
    "ImageData",
    "ImageExample",
    "ImageRow",
    "ImageSplits",
    "Measures",
    "Picture",
    "PromptWriter",
    "Reading",
    "chosen_template",
    "decoded",
    "named",
    "pages",
    "picture_of",
    "prepare_images",
    "question",
    "recognise",
]
