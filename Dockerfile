# docker build -t gsg .                          torch for CPUs; --build-arg TORCH=cuda for GPUs
# docker run -v "$PWD/data:/gsg/data" -v "$PWD/reports:/gsg/reports" gsg make demo
# docker run --gpus all --shm-size=16g -v /data:/data gsg make pretrain PROFILE=imagenet DATA=/data
FROM python:3.13-slim
ARG TORCH=cpu
RUN apt-get update && apt-get install --yes --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
WORKDIR /gsg
COPY . .
RUN --mount=type=cache,target=/root/.cache make setup TORCH=$TORCH
RUN make doctor
CMD ["make", "demo"]
