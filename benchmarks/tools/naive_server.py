"""The server that is written first: FastAPI around a pipeline of transformers, one call per request.

python -m tools.naive_server FOLDER PORT
"""

from __future__ import annotations

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline


class Inputs(BaseModel):
    inputs: list[str]


def application(folder: str) -> FastAPI:
    classify = pipeline("text-classification", model=folder, top_k=None)
    app = FastAPI()

    @app.post("/predict")
    def predict(body: Inputs) -> dict[str, Any]:
        found = classify(body.inputs, truncation=True)
        best = [max(scores, key=lambda score: score["score"])["label"] for scores in found]
        return {"outputs": [{"prediction": label} for label in best]}

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ready"}

    return app


if __name__ == "__main__":
    # Annotations of the endpoint are looked up in the module: it cannot be postponed behind a factory of uvicorn.
    uvicorn.run(application(sys.argv[1]), port=int(sys.argv[2]), log_level="warning")
