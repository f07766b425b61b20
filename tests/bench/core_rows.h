/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_BENCH_CORE_ROWS_H
#define TESTS_BENCH_CORE_ROWS_H 1

/* What bench_core can measure, one function a family; each prints one line: its figure and,
 * where the row compares Moat with itself, the figure to compare it with.  They end the program
 * when what was measured is not what it should have been. */

#include <stdint.h>

/* core_live.c: cycles per packet of live sessions in random order. */
void core_established(int tcp, uint32_t n_conns);
void core_one_slot(int tcp, uint32_t n_conns);

/* core_open.c: new connections. */
void core_new(int tcp);
void core_new_rules(void);
void core_stall(void);

/* core_memory.c: bytes a session, sessions at most, the share of ageing. */
void core_memory(int ip6);
void core_capacity(uint32_t n_sessions);
void core_ageing(uint32_t n_conns);

/* core_threads.c: two threads over one: "lookup", "insert", "shared". */
void core_threads(const char *what);

/* core_hostile.c: cycles per packet of hostile and of uniform traffic: "syn-flood", "random",
 * "fragments", "cache". */
void core_hostile(const char *what);

#endif /* tests/bench/core_rows.h */
