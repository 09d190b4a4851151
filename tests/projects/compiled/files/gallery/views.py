import ctypes
import io

import numpy
from django.contrib.auth.hashers import make_password
from django.http import JsonResponse
from lxml import etree
from PIL import Image


def compiled(request):
    stream = io.BytesIO()
    Image.new("RGB", (20, 20), "blue").resize((10, 10)).save(stream, "WEBP")
    return JsonResponse(
        {
            "numpy": float(numpy.linalg.det(numpy.eye(50))),
            "lxml": etree.fromstring("<a><b/></a>").xpath("count(//b)"),
            "pillow": stream.getvalue()[8:12].decode(),
            "argon2": make_password("x").split("$")[0],
            "callback": ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda number: number + 1)(1),
        }
    )
