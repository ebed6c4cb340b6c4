# One image for every process of Mirror: `docker-compose.yml` says which command is which.

FROM python:3.13-slim AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /venv
COPY requirements/run.txt /requirements.txt
RUN /venv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r /requirements.txt

# What the console's pages load that is not ours; the Node.js that fetches it stays behind.
FROM python:3.13-slim AS frontend
WORKDIR /app
COPY requirements/frontend.txt requirements/frontend.txt
COPY webui/__init__.py webui/__init__.py
COPY webui/frontend webui/frontend
RUN python -m webui.frontend --only-pages

FROM python:3.13-slim
# Fixed numbers, so that a volume's files belong to the same user after an update.
RUN groupadd --gid 10001 mirror \
    && useradd --uid 10001 --gid mirror --home-dir /var/lib/mirror --create-home mirror
COPY --from=build /venv /venv
WORKDIR /app
COPY manage.py ./
COPY mirror_saas mirror_saas
COPY tenants tenants
COPY supervision supervision
COPY webui webui
COPY --from=frontend /app/webui/static/webui/vendor webui/static/webui/vendor
RUN /venv/bin/python -m compileall -q mirror_saas tenants supervision webui
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MIRROR_HOME=/var/lib/mirror \
    MIRROR_BIND=0.0.0.0 \
    PORT=8000
USER mirror
VOLUME /var/lib/mirror
EXPOSE 8000
ENTRYPOINT ["python", "manage.py"]
CMD ["serve", "--only", "all"]
