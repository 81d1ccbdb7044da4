# The tiny demo, on a CPU, with nothing to download but packages:
#   docker build -t letgo . && docker run --rm -v "$PWD/letgo-runs:/runs" letgo
FROM python:3.11-slim
WORKDIR /letgo
# torch first, from the index of its CPU builds: the usual one brings gigabytes of CUDA.
COPY constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt --index-url https://download.pytorch.org/whl/cpu torch
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir --constraint constraints.txt .
RUN useradd --create-home letgo && mkdir /runs && chown letgo /runs
USER letgo
ENV HF_HUB_OFFLINE=1
ENTRYPOINT ["letgo"]
CMD ["demo", "--tiny", "--output", "/runs"]
