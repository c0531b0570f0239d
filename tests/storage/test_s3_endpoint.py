"""Endpoint and credentials come from the environment, under MinIO's names or AWS's, and nonsense is one sentence."""

import pytest

from roboimi.errors import StoreAccessError
from roboimi.storage.s3_endpoint import endpoint_from_environment

AWS = {"AWS_ACCESS_KEY_ID": "aws", "AWS_SECRET_ACCESS_KEY": "aws-secret"}
MINIO = {"MINIO_ACCESS_KEY": "minio", "MINIO_SECRET_KEY": "minio-secret"}
ROOT = {"MINIO_ROOT_USER": "root", "MINIO_ROOT_PASSWORD": "root-secret"}


@pytest.mark.parametrize(
    ("environment", "url", "key"),
    [
        (AWS, "https://s3.us-east-1.amazonaws.com", "aws"),
        (AWS | {"AWS_REGION": "eu-west-1"}, "https://s3.eu-west-1.amazonaws.com", "aws"),
        (AWS | {"AWS_ENDPOINT_URL": "http://host:9000"}, "http://host:9000", "aws"),
        (AWS | {"AWS_ENDPOINT_URL": "http://a", "AWS_ENDPOINT_URL_S3": "https://b/"}, "https://b", "aws"),
        (MINIO | {"MINIO_ENDPOINT": "http://host:9000"}, "http://host:9000", "minio"),
        (AWS | MINIO | {"MINIO_ENDPOINT": "https://host"}, "https://host", "minio"),
        (AWS | MINIO | {"AWS_ENDPOINT_URL": "https://host"}, "https://host", "aws"),
        (ROOT | {"MINIO_ENDPOINT": "http://[::1]:9000"}, "http://[::1]:9000", "root"),
        (AWS | {"ROBOIMI_S3_ENDPOINT": "http://pod:9000", "MINIO_ENDPOINT": "http://b"}, "http://pod:9000", "aws"),
    ],
)
def test_the_names_of_both_worlds_are_taken(environment, url, key):
    endpoint = endpoint_from_environment(environment)
    credentials = endpoint.credentials.retrieve()
    assert (endpoint.url, credentials.access_key, credentials.secret_key) == (url, key, f"{key}-secret")


def test_a_session_belongs_to_the_key_of_aws_alone():
    session = {"AWS_SESSION_TOKEN": "token"}
    assert endpoint_from_environment(AWS | session).credentials.retrieve().session_token == "token"
    assert endpoint_from_environment(MINIO | session).credentials.retrieve().session_token is None


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({}, "There is no key for the object store: set AWS_ACCESS_KEY_ID"),
        ({"AWS_ACCESS_KEY_ID": "x"}, "AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not"),
        (AWS | {"MINIO_ENDPOINT": "host:9000"}, "MINIO_ENDPOINT has to begin with http:// or https://"),
        (AWS | {"AWS_ENDPOINT_URL": "ftp://host"}, "AWS_ENDPOINT_URL has to begin with http:// or https://"),
        (AWS | {"AWS_ENDPOINT_URL": "http://host/path"}, "has to be scheme, host and port alone"),
        (AWS | {"AWS_ENDPOINT_URL": "http://me:hunter2@host"}, "has to be scheme, host and port alone"),
        (AWS | {"AWS_ENDPOINT_URL": "http://host:99999"}, "has a port that is no number up to 65535"),
        (AWS | {"AWS_CA_BUNDLE": "/none.pem"}, "AWS_CA_BUNDLE=/none.pem is no file"),
    ],
)
def test_what_cannot_be_is_one_sentence_without_secrets(environment, sentence):
    with pytest.raises(StoreAccessError, match=sentence) as refusal:
        endpoint_from_environment(environment)
    assert "secret" not in str(refusal.value).lower().replace("aws_secret", "").replace("minio_secret", "")
    assert "hunter2" not in str(refusal.value)


def test_a_secret_is_not_shown():
    assert "aws-secret" not in repr(endpoint_from_environment(AWS))
