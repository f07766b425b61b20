/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_AGENT_STATUS_H
#define MOAT_AGENT_STATUS_H 1

/* The agent's commands for ovs-appctl: moat/status, moat/migrations,
 * moat/reconcile, moat/resync.  Each takes "json" for machines. */

void status_init(const char *host);
void status_run(void); /* keeps Host.status up to date */

#endif /* status.h */
