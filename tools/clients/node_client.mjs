// The npm client etcd3. Argument: the endpoint. Needs NODE_PATH-free resolution: run it beside node_modules.
import assert from 'node:assert';
import { createRequire } from 'node:module';
import { join } from 'node:path';

const require = createRequire(join(process.cwd(), 'x.js'));
const { Etcd3, EtcdLockFailedError } = require('etcd3');
const client = new Etcd3({ hosts: `http://${process.argv[2]}` });

async function put_get_delete() {
  await client.put('js/k').value('v');
  assert.equal(await client.get('js/k').string(), 'v');
  assert.equal(await client.get('js/none').string(), null);
  assert.equal((await client.delete().key('js/k')).deleted, '1');
}

async function ranges() {
  for (const n of [1, 2, 3]) await client.put(`js/r/${n}`).value(n);
  assert.deepEqual(await client.getAll().prefix('js/r/').keys(), ['js/r/1', 'js/r/2', 'js/r/3']);
  assert.equal(await client.getAll().prefix('js/r/').count(), 3);
  assert.equal((await client.getAll().prefix('js/r/').sort('Key', 'Descend').limit(1).keys())[0], 'js/r/3');
  await client.delete().prefix('js/r/');
}

async function comparisons() {
  await client.put('js/t').value('1');
  const yes = await client.if('js/t', 'Value', '==', '1').then(client.put('js/t').value('2')).commit();
  assert.equal(yes.succeeded, true);
  const no = await client.if('js/t', 'Value', '==', '1').then(client.put('js/t').value('3')).else(client.get('js/t')).commit();
  assert.equal(no.succeeded, false);
  assert.equal(no.responses[0].response_range.kvs[0].value.toString(), '2');
}

async function software_transactions() {
  await client.put('js/stm').value('0');
  const add = () => client.stm({ retries: 100 }).transact(async tx => {
    const value = await tx.get('js/stm').number();
    await tx.put('js/stm').value(value + 1);
  });
  await Promise.all(Array.from({ length: 10 }, add));
  assert.equal(await client.get('js/stm').number(), 10);
}

async function leases() {
  const lease = client.lease(30, { autoKeepAlive: false });
  await lease.put('js/l').value('v');
  const response = await lease.keepaliveOnce();
  assert.equal(response.TTL, '30');
  await lease.revoke();
  assert.equal(await client.get('js/l').string(), null);
}

async function locks() {
  const lock = client.lock('js/lock');
  await lock.acquire();
  await assert.rejects(client.lock('js/lock').acquire(), EtcdLockFailedError);
  await lock.release();
}

async function watches() {
  const watcher = await client.watch().key('js/w').create();
  const put = new Promise(resolve => watcher.once('put', resolve));
  const gone = new Promise(resolve => watcher.once('delete', resolve));
  await client.put('js/w').value('1');
  assert.equal((await put).value.toString(), '1');
  await client.delete().key('js/w');
  await gone;
  await watcher.cancel();
}

async function elections() {
  const election = client.election('js/e', 10);
  const campaign = election.campaign('one');
  await new Promise((resolve, reject) => { campaign.once('elected', resolve); campaign.once('error', reject); });
  assert.equal(await election.leader(), 'one');
  await campaign.resign();
}

async function maintenance() {
  const status = await client.maintenance.status();
  assert.match(status.version, /^3\.\d+\.\d+$/);
  const { members } = await client.cluster.memberList({});
  assert.ok(members.some(member => member.ID === status.leader));
}

let failed = 0;
for (const check of [put_get_delete, ranges, comparisons, software_transactions, leases, locks, watches, elections, maintenance]) {
  try {
    await check();
    console.log(`ok ${check.name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED ${check.name}: ${error}`);
  }
}
client.close();
process.exit(failed ? 1 : 0);
