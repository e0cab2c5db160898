"""The HTTP surfaces between services and for clients, in one place.

Gateway, for clients, prefix /api/v1, bearer token of a user:
  GET  /info                                   ServerInfo
  POST /plans                                  PlanRequest -> Plan            (gateway -> provisioner -> optimizer)
  GET  /accelerators                           ?name &count &cloud &region &all -> AcceleratorList
  GET  /catalog                                CatalogInfo: ages, sources, the last refresh
  POST /catalog/refresh                        CatalogRefreshRequest -> CatalogRefresh (202; GET /catalog shows how it goes)
  GET  /prices/history                         ?cloud &instance_type | ?accelerator, &region &zone &spot &since &until &step|points -> PriceHistory
  GET  /infra                                  ?name (repeatable) -> InfraList
  GET  /clusters                               ?name=GLOB (repeatable) &all_users=0|1 &refresh=0|1 -> ClusterList
  POST /clusters/{name}/launch|exec|start|stop|down|autostop     *Request -> Operation (202; header Idempotency-Key)
  GET  /clusters/{name}/jobs                   JobList
  POST /clusters/{name}/jobs/cancel            CancelJobs -> CancelledJobs
  GET  /clusters/{name}/jobs/{id}/logs         as the agent's, passed through (id "latest" allowed)
  GET  /clusters/{name}/jobs/{id}/archive      tar, passed through
  GET  /clusters/{name}/provision-logs         ?follow &tail -> text (the events of its newest launch/start operation)
  GET  /cost-report                            ?days -> CostReport
  GET  /operations                             ?all=0|1 &limit &cluster -> OperationList (newest first)
  GET  /operations/{id or unique prefix}       Operation
  GET  /operations/{id}/events                 text/event-stream: id: SEQ, event: progress, data: OperationEvent; ends after the final
                                               event; header Last-Event-ID or ?after=SEQ resumes; ": keep-alive" comments
  POST /operations/{id}/cancel                 Operation
  POST /files/manifests, PUT /files/chunks     see contracts/files.py
  GET  /server-logs                            ?follow &tail -> text (standalone's own log)
Provisioner: the same paths under /v1 (service token, header X-Skyloom-User = who asks), plus POST /v1/plans.
Optimizer: POST /v1/plans, GET /v1/accelerators, GET /v1/catalog, POST /v1/catalog/refresh, GET /v1/prices/history,
POST /v1/outcomes (service token).
Every service: GET /healthz, GET /readyz (open, no detail), GET /metrics (token).
Errors: status = SkyloomError.http_status, body = SkyloomError.to_wire().
"""

from __future__ import annotations

API_VERSION = 1
IDEMPOTENCY_KEY = "Idempotency-Key"
USER_HEADER = "X-Skyloom-User"
REQUEST_ID = "X-Request-ID"
LOG_OFFSET = "X-Log-Offset"
