"""The same service over PostgreSQL: everything between a request and the database once."""

from pathlib import Path

import numpy as np
from serving import LINEAR, assert_problem, serving


def test_a_job_and_a_dataset_live_their_lives_on_postgresql(tmp_path: Path, postgresql_url: str) -> None:
    with serving(tmp_path, database_url=postgresql_url) as service:
        assert service.http.get("/readyz").status_code == 200
        dataset = service.http.post("/v1/datasets?format=csv&name=prices", content=b"rooms,price\n1,2.5\n3,4\n5,7\n").json()
        job = service.submit(
            dataset={"kind": "upload", "id": dataset["id"]}, name="on postgresql", metadata={"team": "vision"}, regularizers=[{"kind": "l2", "lambda": {"values": [0.1, 1]}}]
        )
        again = [service.http.post("/v1/jobs", json=LINEAR, headers={"Idempotency-Key": "once"}).json()["id"] for _ in range(2)]
        assert again[0] == again[1]
        assert_problem(service.http.delete(f"/v1/datasets/{dataset['id']}"), 409)
        service.train(job, {"loss/train": np.array([[1.0, np.nan], [0.5, 2.0]]), "gradient/norm": np.ones((2, 2, 1))})
        shown = service.http.get(f"/v1/jobs/{job}?wait=20&until=loss/train:lt:0.6")
        assert shown.json()["state"] == "succeeded"
        assert service.http.get(f"/v1/jobs/{job}", headers={"If-None-Match": shown.headers["etag"]}).status_code == 304
        curves = service.http.get(f"/v1/jobs/{job}/curves").json()["series"]
        assert [curve["y"] for curve in curves] == [[1.0, 0.5], [None, 2.0]]
        assert service.http.get(f"/v1/jobs/{job}/gradients?layers=head&format=csv").text.count("\n") == 5
        assert len(service.http.get(f"/v1/jobs/{job}/runs?sort=-regularizers.0.lambda").json()["runs"]) == 2
        found = service.http.get("/v1/jobs?metadata.team=vision&name=on%20postgresql&state=succeeded,failed&created_after=2020-01-01&limit=1").json()
        assert [one["id"] for one in found["jobs"]] == [job]
        assert service.http.get(f"/v1/jobs/{job}/model").status_code == 200
        assert_problem(service.http.get("/v1/jobs?name=a%00b"), 422, path="name")
        assert_problem(service.http.post("/v1/jobs", json={**LINEAR, "name": "a\0b"}), 422, path="name")
        assert service.http.delete(f"/v1/jobs/{job}").status_code == 204
        assert service.http.delete(f"/v1/datasets/{dataset['id']}").status_code == 204
        assert_problem(service.http.get(f"/v1/jobs/{job}"), 404)
