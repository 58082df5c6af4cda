// SPDX-License-Identifier: GPL-2.0
/*
 * A plugin of QEMU that counts instructions by the address of their block, while
 * the machine is between two addresses that hmm_bench calls.
 *
 * Debian has no package with the plugin header; what is used of it is below.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct qemu_plugin_tb;
typedef uint64_t plugin_id;

extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id,
		void (*cb)(plugin_id id, struct qemu_plugin_tb *tb));
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *tb,
		void (*cb)(unsigned int cpu, void *data), int flags, void *data);
extern void qemu_plugin_register_atexit_cb(plugin_id id,
		void (*cb)(plugin_id id, void *data), void *data);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);

/* PLUGIN_API is that of the QEMU in use: none of this has changed in between. */
int qemu_plugin_version = PLUGIN_API;

struct block {
	struct block *next;
	uint64_t addr, insns, runs;
};

static struct block *blocks;
static uint64_t begin_addr, end_addr;
static bool counting;
static FILE *out;

static void block_runs(unsigned int cpu, void *data)
{
	struct block *b = data;

	(void)cpu;
	if (b->addr == begin_addr)
		counting = true;
	else if (b->addr == end_addr)
		counting = false;
	else if (counting)
		b->runs++;
}

/* A block may be translated many times; the reader adds up. */
static void block_is_new(plugin_id id, struct qemu_plugin_tb *tb)
{
	struct block *b = calloc(1, sizeof(*b));

	(void)id;
	if (!b)
		abort();
	b->addr = qemu_plugin_tb_vaddr(tb);
	b->insns = qemu_plugin_tb_n_insns(tb);
	b->next = blocks;
	blocks = b;
	qemu_plugin_register_vcpu_tb_exec_cb(tb, block_runs, 0, b);
}

static void write_counts(plugin_id id, void *data)
{
	struct block *b;

	(void)id;
	(void)data;
	for (b = blocks; b; b = b->next)
		if (b->runs)
			fprintf(out, "%" PRIx64 " %" PRIu64 "\n", b->addr,
				b->insns * b->runs);
	fclose(out);
}

int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
	int i;

	(void)info;
	for (i = 0; i < argc; i++) {
		if (!strncmp(argv[i], "begin=", 6))
			begin_addr = strtoull(argv[i] + 6, NULL, 0);
		else if (!strncmp(argv[i], "end=", 4))
			end_addr = strtoull(argv[i] + 4, NULL, 0);
		else if (!strncmp(argv[i], "out=", 4))
			out = fopen(argv[i] + 4, "w");
	}
	if (!out)
		return -1;
	qemu_plugin_register_vcpu_tb_trans_cb(id, block_is_new);
	qemu_plugin_register_atexit_cb(id, write_counts, NULL);
	return 0;
}
