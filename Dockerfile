# A GPU host: the CUDA build of PyTorch, preftune, its rewards and optimizers, and 4-bit weights (bitsandbytes). Build: docker build -t preftune .
# Run: docker run --gpus all -v "$PWD":/work preftune train dpo pairs.jsonl --output run
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/preftune
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
COPY docs docs
RUN pip install --no-cache-dir -c constraints.txt ".[fast,rewards,optimizers,bitsandbytes]"
WORKDIR /work
ENTRYPOINT ["preftune"]
