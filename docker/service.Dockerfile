# The API and the migration step: no torch, no model.
FROM python:3.11-slim-bookworm

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL

WORKDIR /app

# Dependencies first: a change of our code does not install them anew.
COPY pyproject.toml constraints.txt README.md ./
RUN pip install --constraint constraints.txt --editable ".[service,otel]"

COPY client client
COPY contract contract
COPY service service
COPY trd_data trd_data
# A program of it judges the references of uploads; it loads no torch.
COPY trd_engine trd_engine
COPY trd_estimate trd_estimate
COPY migrations migrations
COPY testbed/models testbed/models

# Named volumes take the owner of the folder that they are mounted on.
RUN useradd --uid 10001 --no-create-home trd && install -d -o trd -g trd /data /data/storage
USER trd
EXPOSE 8000
CMD ["uvicorn", "service.app:app"]
