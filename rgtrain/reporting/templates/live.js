// Say so if the page is older than the process that writes it would leave it.
const written = Number(byId("written").dataset.seconds);
const staleAfter = Number(byId("written").dataset.staleAfter);

function showAge() {
  const age = Date.now() / 1000 - written;
  byId("stale").hidden = !staleAfter || age < staleAfter;
  byId("age").textContent = `${Math.floor(age / 60)} minutes`;
}

showAge();
setInterval(showAge, 5000);
